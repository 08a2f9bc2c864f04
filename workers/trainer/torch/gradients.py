"""The gradients of one update, summed over micro-batches, by ART's loss.

The result does not depend on how the rows are split: the loss is the sum over all trained tokens
divided by their number in the whole mini-batch, and so is the KL penalty's average. (ART divides,
and averages the KL, per sequence.)

Shapes: B rows, T positions, N trained tokens of a micro-batch.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass

import torch
from art.loss import loss_fn

from workers.trainer.torch.batches import MicroBatch, StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import Batches, within_memory
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.ratios import Ratios

TELL_SECONDS = 1.0  # between two readings of the loss: each waits for the GPU

# The correlation with recorded logprobs is NaN where there are none; torch warns of it each time.
warnings.filterwarnings("ignore", message=r"cov\(\): degrees of freedom is <= 0")


@dataclass(frozen=True)
class Objective:
    """What an update's loss depends on besides its tensors.

    Args:
        ratio_cap: The largest importance ratio.
        kl_penalty: With one, the tensors have `start` and `reference`.
        mean_drift: What the penalty takes as the mean of the policy less the reference.
        at_start: The policy is still that of the step's start.
    """

    ratio_cap: float = 5.0
    kl_penalty: float = 0.0
    mean_drift: float = 0.0
    at_start: bool = True


@dataclass(frozen=True)
class Totals:
    """Means over the mini-batch's trained tokens; `drift` is None where the penalty is off.

    `drift` is the mean of the policy less the KL penalty's reference.
    """

    loss: float
    entropy: float
    drift: float | None
    micro_batches: int
    ratios: Ratios


def accumulate_within_memory(
    model: LanguageModel,
    step: StepTensors,
    objective: Objective,
    micro_batch_tokens: int,
    meter: Meter,
) -> Totals:
    """Compute the gradients, begun again in less memory whenever it runs out.

    First without keeping activations (see `LanguageModel.save_memory`), then with half the
    micro-batch, down to one sequence.

    Raises:
        OneSequenceTooLarge: One sequence alone does not fit.
    """
    meter.begin(training=True)

    def run(batches: Batches) -> Totals:
        meter.again()
        model.adapted.zero_grad(set_to_none=True)  # what an attempt that failed has left
        return _Attempt(model, step, objective, meter).run(batches)

    most_tokens = min(micro_batch_tokens, model.most_tokens_at_once)
    return within_memory(step.lengths, most_tokens, run, model.save_memory)


class _Attempt:
    """One pass over the micro-batches."""

    def __init__(
        self, model: LanguageModel, step: StepTensors, objective: Objective, meter: Meter
    ) -> None:
        self._model, self._step, self._objective = model, step, objective
        self._meter = meter
        self._trained = step.trained_tokens
        self._ratios = Ratios(objective.ratio_cap)

    def run(self, batches: Batches) -> Totals:
        """Add the gradients of all micro-batches to the adapter's weights."""
        # loss, entropy, drift
        sums = torch.zeros(3, dtype=torch.float64, device=self._model.device)
        loss: float | None = None
        trained = 0
        reported_at = time.monotonic()
        for done, rows in enumerate(batches, start=1):
            batch = self._step.take(rows, self._model.device)
            sums += self._backward(batch)
            trained += int(batch.predicts.sum())
            now = time.monotonic()
            if done == len(batches) or now - reported_at >= TELL_SECONDS:
                reported_at = now
                loss = float(sums[0]) * self._trained / max(trained, 1)  # of these tokens
                loss = loss if math.isfinite(loss) else None
            self._meter.add(len(rows), self._step.tokens_in(rows), loss)
        found = sums.tolist()
        drift = found[2] if self._objective.kl_penalty > 0 else None
        return Totals(found[0], found[1], drift, len(batches), self._ratios)

    def _backward(self, batch: MicroBatch) -> torch.Tensor:
        """Loss, entropy and drift: these rows' share of the mini-batch's means, [3]."""
        logprobs_n, entropies_n = self._model.logprobs(batch.inputs["tokens"], batch.predicts)
        self._ratios.add(batch.recorded_n, logprobs_n.detach())
        drift = self._penalize(batch, logprobs_n.detach())
        logprobs_bt = batch.spread(logprobs_n)
        config = {"epsilon_high": self._objective.ratio_cap - 1}  # CISPO clips to 0 and 1 + it
        loss = loss_fn(batch.inputs, logprobs_bt, None, None, config, reduction="sum")
        share = loss.policy_loss_sum / self._trained
        share.backward()
        return torch.stack([share.detach(), entropies_n.sum() / self._trained, drift])

    def _penalize(self, batch: MicroBatch, own_n: torch.Tensor) -> torch.Tensor:
        """Move the advantages against the drift from the reference, as ART's loss does.

        A token that has drifted more than the average loses advantage, one that has drifted less
        gains as much: ART's `kl_penalty_coef`, with the average over the whole mini-batch.

        Returns:
            These tokens' share of the mean drift.
        """
        wanted = self._objective
        if not wanted.kl_penalty > 0:
            return own_n.new_zeros(())
        own_n = batch.of_trained("start") if wanted.at_start else own_n
        drift_n = own_n - batch.of_trained("reference")
        penalty_bt = batch.spread(wanted.kl_penalty * (wanted.mean_drift - drift_n))
        # `predicts` stands one position before the token it is about.
        batch.inputs["advantages"][:, 1:] += penalty_bt[:, :-1]
        return drift_n.sum() / self._trained
