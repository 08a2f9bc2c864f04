"""How far the passes of a request are: its signs of life."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from babylon_tasks.records.steps import Progress
from babylon_tasks.records.time_left import LEAST_SECONDS, Span, share_of_whole
from workers.trainer.torch.flops import Passes

# What a token costs forward and backward, in forward passes of it: the arithmetic of an adapter
# says a little over 2 (see `flops`). Where activations are computed again it is 3.
TRAINING_COST = 2.0


@dataclass
class _Kind:
    """Passes of one kind: the tokens that go through all of them, and what was measured so far."""

    cost: float  # of a token, in forward passes
    all_tokens: int
    tokens: int = 0
    seconds: float = 0.0


class Meter:
    """Counts the sequences and tokens that went through the model, in all passes of a request.

    The share of the work that is done weighs tokens by `TRAINING_COST`, so that it depends on no
    clock. The seconds that are left are estimated by the seconds that each kind of pass took.

    Args:
        rows: Sequences that go through the model in each pass.
        tokens: Of these sequences.
        passes: How often they do.
        on_progress: Gets a sign of life at each micro-batch.
        phase: Of the signs of life.
        span: The passes' part of the whole request, as shares of it.
    """

    def __init__(
        self,
        rows: int,
        tokens: int,
        passes: Passes,
        on_progress: Callable[[Progress], None],
        *,
        phase: str = "train",
        span: Span = (0.0, 1.0),
    ) -> None:
        self._total, self._on_progress = rows * sum(passes), on_progress
        self._phase, self._span = phase, span
        self._kinds = {
            "forward": _Kind(1.0, tokens * (passes.policy + passes.base)),
            "training": _Kind(TRAINING_COST, tokens * passes.training),
        }
        self._all_cost = sum(kind.cost * kind.all_tokens for kind in self._kinds.values())
        self._done = self._pass_tokens = 0
        self._loss: float | None = None
        self._name = "forward"
        self._pass_began = self._since = time.monotonic()
        self._mark = (0, replace(self._kinds["forward"]))

    def begin(self, *, training: bool = False) -> None:
        """Begin a pass; what has passed since the last micro-batch belongs to the pass before."""
        now = time.monotonic()
        if self._done:
            self._kinds[self._name].seconds += now - self._since
        self._name = "training" if training else "forward"
        self._mark = (self._done, replace(self._kinds[self._name]))
        self.again()

    def again(self) -> None:
        """Go back to where the pass began: in less memory, it runs again."""
        self._done, kind = self._mark
        self._kinds[self._name] = replace(kind)
        self._pass_tokens = 0
        self._pass_began = self._since = time.monotonic()

    def add(self, sequences: int, tokens: int, loss: float | None = None) -> None:
        """Count these; without a loss, the last one stays."""
        now = time.monotonic()
        kind = self._kinds[self._name]
        kind.tokens += tokens
        kind.seconds += now - self._since
        self._done += sequences
        self._pass_tokens += tokens
        self._since = now
        if loss is not None:
            self._loss = loss
        self._on_progress(
            Progress(
                phase=self._phase,
                done=self._done,
                total=self._total,
                loss=self._loss,
                tokens_per_second=self._pass_tokens / max(now - self._pass_began, 1e-9),
                share=self._share(),
                seconds_left=self._seconds_left(),
            )
        )

    def _share(self) -> float:
        done = sum(kind.cost * kind.tokens for kind in self._kinds.values())
        return share_of_whole(self._span, min(done / max(self._all_cost, 1.0), 1.0))

    def _seconds_left(self) -> float | None:
        kinds = self._kinds.values()
        seconds = sum(kind.seconds for kind in kinds)
        if seconds < LEAST_SECONDS:
            return None
        pace = seconds / sum(kind.cost * kind.tokens for kind in kinds)  # where none is measured
        return sum(
            max(kind.all_tokens - kind.tokens, 0)
            * (kind.seconds / kind.tokens if kind.tokens else pace * kind.cost)
            for kind in kinds
        )
