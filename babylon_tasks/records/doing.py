"""What the holder of a lease does now, for people who watch."""

from __future__ import annotations

from typing import Literal

import msgspec

from babylon_tasks.records.steps import Progress
from babylon_tasks.words import counted, duration, loss_text, named


class Doing(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of work, and how far it is.

    `windows` are ids. `step` is the number of the step that is trained or examined, and `runs`
    counts the trajectories in it. `done` of `total` are units of `phase` (calls, windows,
    questions), `share` is that of the whole work, from 0 to 1. What is not known is None.
    `worker` is the Celery worker's name, "" outside of one.
    """

    stage: Literal["score", "judge", "exam", "train"]
    lineage: str
    windows: list[str] = []
    step: int | None = None
    runs: int | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    share: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    worker: str = ""

    def at(self, progress: Progress, ends: float = 1.0) -> Doing:
        """Return the same work at a trainer's sign of life.

        The trainer's request is the whole work up to the share `ends`.
        """
        share = progress.share
        return msgspec.structs.replace(
            self,
            phase=progress.phase,
            done=progress.done,
            total=progress.total,
            loss=progress.loss,
            tokens_per_second=progress.tokens_per_second,
            share=None if share is None else ends * share,
            seconds_left=progress.seconds_left,
        )

    def title(self) -> str:
        """Say what the work is, and of whom: `babylon-agent: step 13, 6 windows, 48 runs`."""
        return f"{self.lineage}: {self.what()}"

    def what(self) -> str:
        """Say what the work is: `step 13, 6 windows, 48 runs`."""
        if self.stage in ("score", "judge"):
            return f"{counted(len(self.windows), 'window')}: {named(self.windows)}"
        runs = "" if self.runs is None else f", {counted(self.runs, 'run')}"
        exam = "exam of " if self.stage == "exam" else ""
        step = "" if self.step is None else f"{exam}step {self.step}, "
        return f"{step}{counted(len(self.windows), 'window')}{runs}"

    def progress(self) -> str:
        """Say how far it is: `train 31 % (22 of 72), loss 0.0123, 8,400 tokens/s, 40 s left`."""
        share = "" if self.share is None else f" {100 * self.share:.0f} %"
        units = f" ({self.done:,} of {self.total:,})" if self.total else ""
        parts = [f"{self.phase or 'begun'}{share}{units}"]
        if self.loss is not None:
            parts.append(f"loss {loss_text(self.loss)}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)
