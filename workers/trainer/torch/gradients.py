"""The gradients of one step, summed over micro-batches, by ART's loss.

The result does not depend on how the rows are split: the loss is the sum over all trained tokens
divided by their number in the whole step, and the KL penalty's average is the whole step's. (ART
divides, and averages the KL, per sequence.)

Shapes: B rows, T positions, N trained tokens of a micro-batch.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from art.loss import loss_fn

from babylon_tasks.records.steps import Progress
from workers.trainer.torch.batches import MicroBatch, StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import Batches, within_memory
from workers.trainer.torch.ratios import Ratios

TELL_SECONDS = 1.0  # between two readings of the loss: each waits for the GPU

# The correlation with recorded logprobs is NaN where there are none; torch warns of it each time.
warnings.filterwarnings("ignore", message=r"cov\(\): degrees of freedom is <= 0")


@dataclass(frozen=True)
class Totals:
    """Means over the step's trained tokens; `kl` is None where the penalty is off.

    `ratios` are metrics of the tokens whose log-probabilities were recorded.
    """

    loss: float
    entropy: float
    kl: float | None
    micro_batches: int
    ratios: dict[str, float]


def accumulate_within_memory(
    model: LanguageModel,
    step: StepTensors,
    kl_penalty: float,
    micro_batch_tokens: int,
    loss_config: Any,
    on_progress: Callable[[Progress], None],
) -> Totals:
    """Compute the gradients, begun again in less memory whenever it runs out.

    First without keeping activations (see `LanguageModel.save_memory`), then with half the
    micro-batch, down to one sequence.

    Raises:
        OneSequenceTooLarge: One sequence alone does not fit.
    """

    def run(batches: Batches) -> Totals:
        model.adapted.zero_grad(set_to_none=True)  # what an attempt that failed has left
        return _Attempt(model, step, batches, on_progress).run(kl_penalty, loss_config)

    most_tokens = min(micro_batch_tokens, model.most_tokens_at_once)
    return within_memory(step.lengths, most_tokens, run, model.save_memory)


class _Attempt:
    """One pass over the micro-batches."""

    def __init__(
        self,
        model: LanguageModel,
        step: StepTensors,
        batches: Batches,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._model, self._step, self._batches = model, step, batches
        self._on_progress = on_progress
        self._trained = step.trained_tokens
        self._ratios = Ratios()

    def run(self, kl_penalty: float, loss_config: Any) -> Totals:
        """Add the gradients of all micro-batches to the adapter's weights."""
        passes = 3 if kl_penalty > 0 else 1
        self._total = len(self._batches) * passes
        kls = self._kl_to_base() if kl_penalty > 0 else None
        kl = float(torch.cat(kls).sum()) / (self._trained + 1e-6) if kls else None
        sums = torch.zeros(2, dtype=torch.float64, device=self._model.device)  # loss, entropy
        loss: float | None = None
        begun, tokens = time.monotonic(), 0
        reported_at = begun
        for number, rows in enumerate(self._batches):
            batch = self._take(rows)
            if kls is not None and kl is not None:
                _penalize(batch, kls[number], kl, kl_penalty)
            sums += self._backward(batch, loss_config)
            tokens += sum(self._step.lengths[row] for row in rows)
            done = self._total - len(self._batches) + number + 1
            now = time.monotonic()
            if done == self._total or now - reported_at >= TELL_SECONDS:
                reported_at, loss = now, float(sums[0])
                loss = loss if math.isfinite(loss) else None
            speed = tokens / max(now - begun, 1e-9)
            self._on_progress(Progress("train", done, self._total, loss, speed))
        ratios = self._ratios.metrics(self._trained)
        return Totals(float(sums[0]), float(sums[1]), kl, len(self._batches), ratios)

    def _take(self, rows: list[int]) -> MicroBatch:
        return self._step.take(rows, self._model.device)

    def _backward(self, batch: MicroBatch, loss_config: Any) -> torch.Tensor:
        """Loss and entropy: these rows' share of the step's means, [2]."""
        logprobs_n, entropies_n = self._model.logprobs(batch.inputs["tokens"], batch.predicts)
        self._ratios.add(batch.recorded_n, logprobs_n.detach())
        logprobs_bt = batch.spread(logprobs_n)
        loss = loss_fn(batch.inputs, logprobs_bt, None, None, loss_config, reduction="sum")
        share = loss.policy_loss_sum / self._trained
        share.backward()
        return torch.stack([share.detach(), entropies_n.sum() / self._trained])

    @torch.no_grad()
    def _kl_to_base(self) -> list[torch.Tensor]:
        """Each micro-batch's log-probabilities less the base model's, [N] each."""
        kls = []
        for number, rows in enumerate(self._batches):
            batch = self._take(rows)
            tokens = batch.inputs["tokens"]
            now_n, _ = self._model.logprobs(tokens, batch.predicts)
            self._on_progress(Progress("train", 2 * number + 1, self._total))
            with self._model.as_base():
                base_n, _ = self._model.logprobs(tokens, batch.predicts)
            self._on_progress(Progress("train", 2 * number + 2, self._total))
            kls.append(now_n - base_n)
        return kls


def _penalize(batch: MicroBatch, kl_n: torch.Tensor, mean_kl: float, kl_penalty: float) -> None:
    """Move the advantages against the drift from the base model, as ART's loss does.

    A token that has drifted more than the step's average loses advantage, one that has drifted
    less gains as much: ART's `kl_penalty_coef`, with the average over the whole step.
    """
    penalty_bt = batch.spread(kl_penalty * (mean_kl - kl_n))
    # `predicts` stands one position before the token it is about.
    batch.inputs["advantages"][:, 1:] += penalty_bt[:, :-1]
