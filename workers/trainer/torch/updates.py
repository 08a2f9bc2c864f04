"""The updates of a training step: its passes over mini-batches of whole windows."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Hyperparameters, Progress
from workers.trainer.torch import policies
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.gradients import Objective, Totals, accumulate_within_memory
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.learning_rate import learning_rate
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.ratios import Ratios

MAX_GRADIENT_NORM = 1.0
SPAN = (0.05, 0.98)  # the updates' part of a whole step, by rule of thumb


class Updates:
    """Takes a step's updates, one for each mini-batch in each pass.

    `count`, `seconds_by_phase` and `metrics` are complete after `run`.

    Args:
        model: With the adapter to train.
        optimizer: Of its parameters.
        wanted: The recipe.
        before: Updates of the lineage before this step.
        on_progress: Gets signs of life.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        wanted: Hyperparameters,
        before: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._model, self._optimizer, self._wanted = model, optimizer, wanted
        self._before, self._on_progress = before, on_progress
        self._ratios = Ratios(wanted.ratio_cap)
        self._trained_tokens = 0
        self._values: dict[str, list[float]] = {}  # by metric, one of each update
        self.count = 0
        self.seconds_by_phase: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = {}

    def run(self, mini_batches: Sequence[StepTensors], windows: int) -> None:
        """Train: all mini-batches, of so many windows, in their order; then again in each pass.

        Raises:
            OneSequenceTooLarge: One sequence alone does not fit.
            Final: The gradients are not finite.
        """
        wanted, started = self._wanted, time.monotonic()
        lengths = [length for one in mini_batches for length in one.lengths]
        passes = policies.passes_of(wanted)
        self._meter = Meter(len(lengths), sum(lengths), passes, self._on_progress, span=SPAN)
        micro = wanted.micro_batch_tokens
        parts = [
            policies.with_policies(self._model, one, wanted, self._meter) for one in mini_batches
        ]
        drifts = [0.0] * len(parts)
        if wanted.kl_penalty > 0:
            drifts = [policies.mean_drift(self._model, part, micro) for part in parts]
        self._took("forward_backward", started)
        weights_before = [weights.detach().clone() for weights in self._model.parameters()]
        for _ in range(wanted.passes):
            for number, part in enumerate(parts):
                drifts[number] = self._update(part, drifts[number])
        started = time.monotonic()
        changes = [
            policies.changes(part, policies.logprobs_by(self._model, part, micro, self._meter))
            for part in parts
        ]
        self._took("forward_backward", started)
        change = float(torch.cat(changes).mean())
        if not math.isfinite(change):
            raise Final(
                "the step left a model whose answers have no probability: lower LEARNING_RATE"
            )
        share = step_share(change, wanted.max_policy_change, windows)
        if share < 1:
            _shorten(self._model.parameters(), weights_before, share)
        self._finish(change * share, share)  # the change of a shorter step: to first order

    def _update(self, part: StepTensors, mean_drift: float) -> float:
        """Take one update, and return the mean drift from the KL penalty's reference before it."""
        wanted, started = self._wanted, time.monotonic()
        for group in self._optimizer.param_groups:  # the parent's state carries the parent's rate
            group["lr"] = learning_rate(wanted, self._model.hidden_size, self._before + self.count)
        objective = Objective(
            wanted.ratio_cap, wanted.kl_penalty, mean_drift, at_start=self.count == 0
        )
        totals = accumulate_within_memory(
            self._model, part, objective, wanted.micro_batch_tokens, self._meter
        )
        computed = self._took("forward_backward", started)
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        if not (torch.isfinite(norm) and math.isfinite(totals.loss)):
            raise Final("the gradients are not finite: lower LEARNING_RATE or change BASE_MODEL")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._took("optimizer", computed)
        self._note(totals, mean_drift, float(norm))
        self._trained_tokens += part.trained_tokens
        self.count += 1
        return mean_drift if totals.drift is None else totals.drift

    def _took(self, phase: str, started: float) -> float:
        now = time.monotonic()
        self.seconds_by_phase[phase] += now - started
        return now

    def _note(self, totals: Totals, mean_drift: float, norm: float) -> None:
        values = {
            "loss": totals.loss,
            "entropy": totals.entropy,
            "grad_norm": norm,
            "micro_batches": float(totals.micro_batches),
        }
        if totals.drift is not None:
            # Of the first update as the penalty took it: the sum in another order rounds otherwise.
            values["kl"] = totals.drift if self.count else mean_drift
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
        self._ratios.extend(totals.ratios)

    def _finish(self, policy_change: float, share: float) -> None:
        self.metrics = {
            **{name: fmean(values) for name, values in self._values.items()},
            "micro_batches": sum(self._values["micro_batches"]),
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "policy_change": policy_change,
            "step_share": share,
            **self._ratios.metrics(self._trained_tokens),
        }


def step_share(change: float, most: float | None, windows: int) -> float:
    """Return the share of a step to take, 0 to 1, so that it moves answers by `most` a window.

    `change` is what the whole step did, in nats. Several windows may move the policy as far as they
    would one by one.
    """
    return 1.0 if most is None or change <= most * windows else most * windows / change


@torch.no_grad()
def _shorten(
    weights: Sequence[torch.Tensor], weights_before: Sequence[torch.Tensor], share: float
) -> None:
    """Go back on the straight way to where the step began, but for this share of it."""
    for now, before in zip(weights, weights_before, strict=True):
        now.copy_(torch.lerp(before, now, share))
