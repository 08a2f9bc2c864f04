"""One attempt at a training step: read, train, save, commit; or leave no trace."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks import checkpoints, scoring
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.keeper import Keeper
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, requests, scores, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Database
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.scores import StoredScore
from babylon_tasks.store.steps import Commit
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.traces import Unusable, decode
from babylon_tasks.training import (
    Hyperparameters,
    Progress,
    Sample,
    StepRequest,
    StepResult,
    Trainer,
)
from babylon_tasks.windows import State, Window
from babylon_tasks.worker import Worker

log = logging.getLogger(__name__)

_COMMIT_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """A committed step; `seconds` is its wall time."""

    step: int
    version: str
    checkpoint: str
    window_ids: list[str]
    trajectories: int
    result: StepResult
    seconds: float


@dataclass(frozen=True, slots=True)
class _Material:
    """What a step will train on: the windows that are left, and rewards by trajectory id."""

    windows: list[Window]
    rewards: dict[str, float]


def attempt_step(
    worker: Worker,
    trainer: Trainer,
    keeper: Keeper,
    windows: Sequence[Window],
    requested_version: str | None,
    on_progress: Callable[[Progress], None],
) -> StepReport | None:
    """Train the windows in one step and commit it; None where none of them had signal left.

    Raises:
        Retryable, Final: The step failed; nothing was written.
        StaleClaim, LeaseLost: Another worker has taken over; nothing was written.
        UserError: This machine cannot train; nothing was written.
    """
    started = time.monotonic()
    database, settings = worker.database, worker.settings
    window_ids = [w.window_id for w in windows]
    lease = keeper.renew_token(
        lambda tx, token: attempts.open_step(
            tx, settings.model_name, worker.holder, token, window_ids
        )
    )
    with tempfile.TemporaryDirectory(prefix="babylon-step-") as scratch_name:
        scratch = Path(scratch_name)
        samples_path = scratch / "samples.jsonl"
        material = asyncio.run(_collect(worker, keeper, lease, windows, samples_path))
        if not material.windows:
            return None
        with database.transaction() as tx:
            head = steps.head(tx, settings.model_name, settings.base_model)
            parent = steps.read(tx, settings.model_name, head.step)
            if material.windows[0].batch_id:
                requests.start(tx, material.windows[0].batch_id)
        checkpoint = checkpoints.folder_of(
            settings.checkpoint_store, settings.model_name, head.step + 1, lease.token
        )
        parent_folder = checkpoints.open_local(parent.checkpoint, keeper.beat) if parent else None
        checkpoints.check_writable(checkpoint)
        request = StepRequest(
            model_name=settings.model_name,
            base_model=settings.base_model,
            parent=str(parent_folder) if parent_folder else None,
            samples_path=str(samples_path),
            scratch_dir=str(scratch / "trainer"),
            output_dir=str(scratch / "checkpoint"),
            seed=head.step + 1,
            hyperparameters=_hyperparameters(settings),
        )

        def on_beat(progress: Progress | None) -> None:
            keeper.beat()
            if progress is not None:
                on_progress(progress)

        result = trainer.step(request, on_beat)
        keeper.beat()
        with database.transaction() as tx:
            nonce = steps.begin_checkpoint(tx, settings.model_name, checkpoint, lease.token)
        checkpoints.save(Path(request.output_dir), checkpoint, nonce, keeper.beat)
    commit = Commit(
        model_name=settings.model_name,
        base_model=settings.base_model,
        expected_step=head.step,
        token=lease.token,
        holder=worker.holder,
        trainer=settings.trainer,
        primary=settings.primary,
        windows=material.windows,
        rewards=material.rewards,
        result=result,
        checkpoint=checkpoint,
        seconds=time.monotonic() - started,
        requested_version=_requested_version(database, material.windows, requested_version),
    )
    version = _commit(database, keeper, commit)
    log.info(
        "step %d (%s): %d windows, %d trajectories, loss %.4f, %.1f s",
        head.step + 1,
        version,
        len(material.windows),
        len(material.rewards),
        result.loss,
        commit.seconds,
    )
    return StepReport(
        step=head.step + 1,
        version=version,
        checkpoint=checkpoint,
        window_ids=[w.window_id for w in material.windows],
        trajectories=len(material.rewards),
        result=result,
        seconds=commit.seconds,
    )


def _commit(database: Database, keeper: Keeper, new: Commit) -> str:
    """Commit, again and again while the lease lives: a step may have taken hours.

    A connection lost in COMMIT leaves the outcome open: the row with our token decides. Where it
    stays open, the files stay too: a COMMIT on its way may still name them, and if none does, the
    next holder of the lease removes them. A commit that is refused removes them here.
    """
    unsure = False
    while True:
        try:
            with database.transaction() as tx:
                version = steps.version_of_token(tx, new.model_name, new.token) if unsure else None
                return version or steps.commit(tx, new)
        except ServerUnavailable as error:
            unsure = True
            log.warning("cannot commit step %d yet: %s", new.expected_step + 1, error)
            time.sleep(_COMMIT_AGAIN_SECONDS)
            keeper.beat()
        except Exception:
            if not unsure:
                checkpoints.remove(new.checkpoint)
            raise


def _requested_version(
    database: Database, windows: Sequence[Window], requested: str | None
) -> str | None:
    if requested is not None or windows[0].batch_id is None:
        return requested
    with database.transaction() as tx:
        request = requests.read(tx, windows[0].batch_id)
    return request.version if request else None


async def _collect(
    worker: Worker, keeper: Keeper, lease: Lease, windows: Sequence[Window], path: Path
) -> _Material:
    """Write the samples of every window that still has signal, a trajectory at a time."""
    settings = worker.settings
    kept: list[Window] = []
    rewards: dict[str, float] = {}
    with path.open("wb") as file:
        async with open_reader(settings) as reader:
            for window in windows:
                with worker.database.transaction() as tx:
                    known = scores.read(
                        tx,
                        model_name=settings.model_name,
                        scorer=window.scorer or settings.scoring,
                        window_id=window.window_id,
                    )
                start = file.tell()
                own, stale = await _collect_window(reader, keeper, window, known, file.write)
                reason = scoring.no_signal(list(own.values()), settings.min_reward_spread)
                if not stale and reason is None:
                    kept.append(window)
                    rewards.update(own)
                    continue
                file.truncate(start)
                file.seek(start)
                _set_aside(worker, lease, window, None if stale else reason)
    return _Material(kept, rewards)


async def _collect_window(
    reader: TraceReader,
    keeper: Keeper,
    window: Window,
    known: dict[str, StoredScore],
    write: Callable[[bytes], int],
) -> tuple[dict[str, float], bool]:
    """Rewards of the samples written, and whether a trace is not what was judged."""
    own: dict[str, float] = {}
    async with aclosing(reader.read(window.window_id)) as rows:
        async for raw in rows:
            keeper.beat()
            score = known.get(raw.trajectory_id)
            if score is None:
                continue  # it came late, or was set aside
            try:
                trace = decode(raw)
            except Unusable:
                return {}, True
            if trace.outcome.content_hash != score.content_hash:
                return {}, True
            if trace.calls:
                sample = Sample(window.window_id, raw.trajectory_id, score.score, trace.calls)
                write(msgspec.json.encode(sample) + b"\n")
                own[raw.trajectory_id] = score.score
    return own, False


def _set_aside(worker: Worker, lease: Lease, window: Window, reason: str | None) -> None:
    """Skip a window that has no signal left, or have a rewritten one (no reason) scored again."""
    settings = worker.settings
    name, tokens, ids = settings.model_name, [lease.token], [window.window_id]
    with worker.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)  # a zombie has no say
        if reason is None:
            why = "a trace was rewritten after it was scored"
            attempts.end(tx, name, tokens, Ending.GIVEN_BACK, why, ids)
            window_rows.rescore(tx, name, window)
            return
        attempts.end(tx, name, tokens, Ending.SKIPPED, reason, ids)
        ended = window_rows.end(
            tx,
            window,
            model_name=settings.model_name,
            state=State.SKIPPED,
            holder=worker.holder,
            reason=reason,
        )
        if ended and window.batch_id:
            requests.fail(tx, window.batch_id, f"window {window.window_id} is skipped: {reason}")


def _hyperparameters(settings: Settings) -> Hyperparameters:
    return Hyperparameters(
        **{name: getattr(settings, name) for name in Hyperparameters.__struct_fields__}
    )
