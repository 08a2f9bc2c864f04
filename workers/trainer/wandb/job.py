"""One training job at W&B: what its events say, and the wait for its end."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from babylon_tasks.errors import RemoteUnavailable
from babylon_tasks.records.steps import JobNote, Progress, Remote
from babylon_tasks.records.time_left import share_of_whole, time_left
from babylon_tasks.text import one_line
from workers.trainer.wandb.client import Event, WandbClient

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_POLL_SECONDS = 30.0  # while W&B does not answer
SPAN = (0.05, 0.95)  # the job's part of the whole step, by rule of thumb
UNKNOWN_SECONDS = 60.0  # for a job that W&B does not know (yet), a checkpoint that it does not list


@dataclass
class JobEvents:
    """What a job's events said so far."""

    total: int = 0
    after: str | None = None
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gradient_steps: int = 0
    ended: bool = False
    error: str | None = None

    def add(self, event: Event) -> float | None:
        """Count one event.

        Returns:
            The loss, where it tells one.
        """
        if event.type == "training_started":
            # Told again with each question, until there is a gradient step to name.
            self.total = int(_number(event.data.get("num_sequences")) or 0)
            return None
        self.after = event.id
        if event.type == "training_ended":
            self.ended = True
        elif event.type == "training_failed":
            self.ended = True
            message = event.data.get("error_message") or "no reason given"
            self.error = one_line(str(message))
        elif event.type == "gradient_step":
            self.gradient_steps += 1
            for name, value in event.data.items():
                number = _number(value)
                if number is not None:
                    self.sums[name] += number
                    self.counts[name] += 1
            return _number(event.data.get("loss", event.data.get("policy_loss")))
        return None

    def metrics(self) -> dict[str, float]:
        """Means over the gradient steps."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass(frozen=True)
class MadeCheckpoint:
    """A checkpoint that a job made."""

    remote_step: int
    events: JobEvents
    job_id: str | None


class JobGone(Exception):
    """A job ended without a checkpoint, or is taken for lost; its note says how."""

    def __init__(self, note: JobNote) -> None:
        super().__init__(note.why)
        self.note = note


class JobFollower:
    """Follows a job of one step to its end, and reports its progress."""

    def __init__(
        self, client: WandbClient, remote: Remote, on_progress: Callable[[Progress], None]
    ) -> None:
        self._client, self._remote, self._on_progress = client, remote, on_progress
        self._loss: float | None = None
        # When gradient steps were first told, and how many there were.
        self._began: tuple[float, int] | None = None

    async def follow(
        self, model_id: str, before: int, job_id: str | None, lost_seconds: float
    ) -> MadeCheckpoint:
        """Wait for the job's end, however long W&B is away meanwhile.

        `before` is the model's step when the job was posted. A job without an id counts as lost
        after `lost_seconds`.

        Raises:
            JobGone: It failed, or nothing was heard of it for too long.
        """
        self._loss = None
        self._began = None
        self._on_progress(Progress("queue", share=SPAN[0]))
        events = JobEvents()
        # Without an id there are no events: only the model's newest checkpoint tells.
        if job_id is None:
            ending = JobNote(
                "lost",
                why=f"no answer came to a job, and W&B's model stayed at step {before} for "
                f"{self._remote.lost_seconds:g} s (SERVERLESS_LOST_SECONDS)",
            )
            moved = await self._moved(model_id, before, lost_seconds, ending)
            return MadeCheckpoint(moved, events, None)
        is_known = await self._hear_out(job_id, events)
        if events.error is not None:
            raise JobGone(JobNote("failed", why=f"W&B's job {job_id} failed: {events.error}"))
        why = "ended without a new checkpoint" if is_known else "is not known to W&B"
        ending = JobNote("failed" if is_known else "lost", why=f"W&B's job {job_id} {why}")
        moved = await self._moved(model_id, before, UNKNOWN_SECONDS, ending)
        return MadeCheckpoint(moved, events, job_id)

    async def _hear_out(self, job_id: str, events: JobEvents) -> bool:
        """Until the job's last event; False where W&B knows no such job."""
        wait_seconds = POLL_SECONDS
        unknown_since: float | None = None
        while not events.ended:
            try:
                answered = await self._client.events(job_id, events.after)
            except RemoteUnavailable as error:
                log.warning("%s", error)
                wait_seconds = min(2 * wait_seconds, MAX_POLL_SECONDS)
                await self._client.pause(wait_seconds)
                continue
            wait_seconds = POLL_SECONDS
            if answered is None:
                unknown_since = unknown_since or time.monotonic()
                if time.monotonic() - unknown_since > UNKNOWN_SECONDS:
                    return False
            for event in answered or ():
                self._relay(events, event)
            if not events.ended:
                await self._client.pause(wait_seconds)
        return True

    def _relay(self, events: JobEvents, event: Event) -> None:
        self._loss = events.add(event) or self._loss
        if events.total:
            self._on_progress(self._progress(events.gradient_steps, events.total))

    def _progress(self, done: int, sequences: int) -> Progress:
        """Return how far W&B is; it takes at most one gradient step a sequence."""
        now, total = time.monotonic(), max(sequences, done)
        began, before = self._began = self._began or (now, done)
        seconds_left = None
        if total > before:
            seconds_left = time_left(now - began, (done - before) / (total - before))
        share = share_of_whole(SPAN, done / total)
        return Progress("train", done, total, self._loss, share=share, seconds_left=seconds_left)

    async def _moved(self, model_id: str, before: int, seconds: float, ending: JobNote) -> int:
        """Wait until W&B's model stands beyond `before`; its step.

        Raises:
            JobGone: It does not, though it could be asked at the end.
        """
        deadline = time.monotonic() + seconds
        wait_seconds = POLL_SECONDS
        while True:
            last = time.monotonic() >= deadline
            try:
                step = await self._client.newest_step(model_id)
            except RemoteUnavailable as error:
                log.warning("%s", error)
                wait_seconds = min(2 * wait_seconds, MAX_POLL_SECONDS)
            else:
                if step > before:
                    return step
                if last:
                    raise JobGone(ending)
                wait_seconds = POLL_SECONDS
            await self._client.pause(wait_seconds)


def _number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
