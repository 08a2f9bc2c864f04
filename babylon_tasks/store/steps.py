"""Reads and writes `rl.steps` and the app's `trained_models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg.rows import class_row

from babylon_tasks.errors import CheckpointRemoved, StaleClaim
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.recipes import Recipe
from babylon_tasks.records.steps import StepResult, compute_seconds
from babylon_tasks.records.versions import choose_version
from babylon_tasks.records.windows import Window
from babylon_tasks.store import (
    attempts,
    heads,
    jobs,
    lineages,
    logprobs,
    training_batches,
    transitions,
)
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim
from babylon_tasks.store.queries import load

_SQL = load("steps")


@dataclass(frozen=True, slots=True)
class Step:
    """A row of `rl.steps`; `model_name` is an ancestor's if the lineage inherited the step.

    `parent_step` is the step whose weights it started from. `given_up_at`: since then it is not on
    the way from the root to the head; never that of an ancestor, whose head is another one.
    """

    model_name: str
    step: int
    parent_step: int
    given_up_at: datetime | None
    version: str
    checkpoint: str
    window_ids: list[str]
    trajectories: int
    trainable_tokens: int
    metrics: dict[str, Any]
    gpu_seconds: float
    cost_usd: Decimal | None
    seconds: dict[str, float]
    tokens_per_second: float | None
    mfu: float | None
    peak_memory_bytes: int | None
    trainer: str
    started_at: datetime
    committed_at: datetime
    removed_at: datetime | None

    def files(self) -> str:
        """Return the folder or URL of its files.

        Raises:
            CheckpointRemoved: They were removed.
        """
        if self.removed_at is not None:
            raise CheckpointRemoved(
                f"the files of step {self.step} ({self.version}) were removed on "
                f"{self.removed_at:%Y-%m-%d}, as KEEP_CHECKPOINTS and KEEP_EVERY say"
            )
        return self.checkpoint

    @property
    def inference_name(self) -> str | None:
        """The version's name at W&B's endpoint, if W&B has its weights."""
        name = self.metrics.get("inference_name")
        return str(name) if name else None


@dataclass(frozen=True, slots=True)
class StepToLog(Step):
    """A committed step that is not on W&B yet; `funnel` is the sum of its windows' funnels.

    `badly_by_version` has the share of done badly calls, by the version that answered them.
    """

    funnel: dict[str, int]
    badly_by_version: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepListing:
    """A line of `babylon models list`."""

    step: int
    parent_step: int
    given_up_at: datetime | None
    version: str
    trainer: str
    trajectories: int
    loss: float | None
    policy_change: float | None
    checkpoint: str
    committed_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Commit:
    """All that one committed step writes.

    The compare-and-set needs `expected_step` (the head that the step started from) and the token of
    the claim's lease; `step` is the new one's number. `recipe` has everything that is needed to
    make the step again. `rewards` maps the trained trajectories to their scores. `funnels` counts
    what was left out of each window after it was scored. `seconds` has the step's wall time by
    phase, without the commit. `cost_usd` is None if the price is unknown.
    """

    claim: Claim
    lineage: Lineage
    expected_step: int
    step: int
    recipe: Recipe
    trainer: str
    windows: Sequence[Window]
    rewards: dict[str, float]
    funnels: Mapping[str, Mapping[str, int]]
    result: StepResult
    checkpoint: str
    seconds: Mapping[str, float]
    cost_usd: float | None
    requested_version: str | None


def read(connection: Connection, model_name: str, step: int) -> Step | None:
    """Return one committed step, or None."""
    with connection.cursor(row_factory=class_row(Step)) as cursor:
        return cursor.execute(
            _SQL["read_step"], {"model_name": model_name, "step": step}
        ).fetchone()


def listing(connection: Connection, model_name: str) -> list[StepListing]:
    """Return all committed steps, newest first."""
    with connection.cursor(row_factory=class_row(StepListing)) as cursor:
        return cursor.execute(_SQL["list_steps"], {"model_name": model_name}).fetchall()


def version_of_token(connection: Connection, claim: Claim) -> str | None:
    """Return the version that the attempt with this token committed, or None if it has not."""
    row = connection.execute(_SQL["step_of_token"], _identity(claim)).fetchone()
    return str(row["version"]) if row else None


def commit(connection: Connection, new: Commit) -> str:
    """Write a step and everything that follows from it, in the caller's transaction.

    Returns:
        The version given to the step.

    Raises:
        StaleClaim: The head moved, the lease was lost, or a window changed; roll back.
    """
    name, step = new.lineage.name, new.step
    identity = _identity(new.claim)
    if not heads.advance(connection, new.claim, new.expected_step, step):
        raise StaleClaim(
            f"step {step} of {name} is refused: the lease went or another step came first"
        )
    if not transitions.mark_trained(connection, new.claim, new.windows, step, new.funnels):
        raise StaleClaim("a window of the step was scored again or ended meanwhile")
    if new.result.base_revision:
        lineages.pin_revision(connection, name, new.result.base_revision)
    version = _give_version(connection, new)
    logprobs.forget(connection, name, [w.window_id for w in new.windows])
    attempts.end(connection, name, [new.claim.lease.token], Ending.DONE)
    jobs.finish(connection, name, new.claim.lease.token)
    if new.lineage.primary:
        _write_back(connection, new, step, version)
    # Nearly last, since it stores how long this transaction took.
    connection.execute(_SQL["insert_step"], {**identity, **_columns(new, version)})
    connection.execute(_SQL["finish_checkpoint"], {"checkpoint": new.checkpoint})
    return version


def begin_checkpoint(connection: Connection, claim: Claim, checkpoint: str, nonce: str) -> None:
    """Note that an attempt is about to write this folder, with this nonce in it."""
    connection.execute(
        _SQL["begin_checkpoint"],
        {**_identity(claim), "checkpoint": checkpoint, "nonce": nonce},
    )


def unfinished_checkpoints(connection: Connection, model_name: str, limit: int) -> dict[str, str]:
    """Return at most `limit` folders that no step names, with their nonces."""
    rows = connection.execute(
        _SQL["unfinished_checkpoints"], {"model_name": model_name, "limit": limit}
    ).fetchall()
    return {row["checkpoint"]: str(row["nonce"]) for row in rows}


def forget_checkpoint(connection: Connection, checkpoint: str) -> None:
    """Forget an unfinished folder whose files were all removed."""
    connection.execute(_SQL["finish_checkpoint"], {"checkpoint": checkpoint})


def with_files(connection: Connection, model_name: str) -> dict[int, bool]:
    """Return the steps that have files, and whether each was given up."""
    rows = connection.execute(_SQL["steps_with_files"], {"model_name": model_name}).fetchall()
    return {row["step"]: row["given_up"] for row in rows}


def give_up(
    connection: Connection, model_name: str, may_go: Sequence[int], limit: int
) -> list[int]:
    """Mark the files of at most `limit` of these steps, oldest first, for removal; return them.

    Steps that the app has deployed, or whose folder another database may have made, are not marked.
    The app's rows of the marked steps are archived. Call it with the head locked, in the
    transaction that made the decision.
    """
    rows = connection.execute(
        _SQL["give_up_steps"], {"model_name": model_name, "steps": list(may_go), "limit": limit}
    ).fetchall()
    return sorted(row["step"] for row in rows)


def to_log(connection: Connection, model_name: str, limit: int) -> list[StepToLog]:
    """Return the oldest committed steps that are not on W&B yet."""
    with connection.cursor(row_factory=class_row(StepToLog)) as cursor:
        return cursor.execute(
            _SQL["steps_to_log"], {"model_name": model_name, "limit": limit}
        ).fetchall()


def logged(connection: Connection, model_name: str, steps: Sequence[int]) -> None:
    """Note that these steps are on W&B."""
    connection.execute(_SQL["steps_logged"], {"model_name": model_name, "steps": list(steps)})


def steps_of_versions(connection: Connection, model_name: str) -> dict[tuple[str, str], int]:
    """Return the step of each version of the lineage and of its ancestors, up to the fork.

    The key has the lineage that made the version, and the version.
    """
    rows = connection.execute(_SQL["steps_of_lineage"], {"model_name": model_name}).fetchall()
    return {(row["model_name"], row["version"]): row["step"] for row in rows if row["version"]}


def parents(connection: Connection, model_name: str) -> dict[int, int]:
    """Return the parent of each step of the lineage and of its ancestors, up to the fork."""
    rows = connection.execute(_SQL["steps_of_lineage"], {"model_name": model_name}).fetchall()
    return {row["step"]: row["parent_step"] for row in rows}


def _identity(claim: Claim) -> dict[str, str | int]:
    return {"model_name": claim.model_name, "token": claim.lease.token}


def _columns(new: Commit, version: str) -> dict[str, object]:
    """Return the row of `rl.steps` without its identity."""
    return {
        "step": new.step,
        "expected_step": new.expected_step,
        "recipe": jsonb(msgspec.to_builtins(new.recipe)),
        "trainer": new.trainer,
        "window_ids": [w.window_id for w in new.windows],
        "trajectories": len(new.rewards),
        "trainable_tokens": new.result.trainable_tokens,
        "metrics": jsonb(_metrics(new.result)),
        "gpu_seconds": new.result.gpu_seconds,
        "cost_usd": new.cost_usd,
        "checkpoint": new.checkpoint,
        "version": version,
        "total_seconds": sum(new.seconds.values()),
        "seconds": jsonb(dict(new.seconds)),
        "tokens_per_second": _tokens_per_second(new),
        "mfu": new.result.mfu,
        "peak_memory_bytes": new.result.peak_memory_bytes,
    }


def _give_version(connection: Connection, new: Commit) -> str:
    if new.lineage.primary:  # other lineages share no names, and their lease has one holder
        connection.execute(_SQL["lock_versions"])
    rows = connection.execute(_SQL["taken_versions"], {"model_name": new.lineage.name}).fetchall()
    return choose_version(new.requested_version, {row["version"] for row in rows})


def _write_back(connection: Connection, new: Commit, step: int, version: str) -> None:
    name, base_model = new.lineage.name, new.lineage.base_model
    batch_id = new.windows[0].batch_id
    if batch_id is None:
        batch_id = f"{name}-step-{step}-{new.claim.lease.token}"
        window_id = new.windows[0].window_id if len(new.windows) == 1 else None
        training_batches.insert(connection, batch_id, window_id, base_model, version)
    done = training_batches.Completion(
        version, base_model, new.rewards, new.result.loss, sum(new.seconds.values())
    )
    training_batches.complete(connection, batch_id, done)
    connection.execute(
        _SQL["insert_model"],
        {
            "model_id": f"{name}-{version}",
            "version": version,
            "base_model": base_model,
            "batch_id": batch_id,
            # W&B's name for the weights, which clients use, or the path of the files.
            "checkpoint": new.result.inference_name or new.checkpoint,
            "avg_reward": sum(new.rewards.values()) / len(new.rewards),
        },
    )
    connection.execute(
        _SQL["mark_trajectories_used"],
        {
            "model_name": name,
            "batch_id": batch_id,
            "window_ids": [w.window_id for w in new.windows],
            "trajectory_ids": list(new.rewards),
        },
    )


def _metrics(result: StepResult) -> dict[str, Any]:
    """Return all parts of the result that have no column of their own."""
    fields: dict[str, Any] = msgspec.structs.asdict(result)
    metrics = fields.pop("metrics")
    for name in _STORED_ELSEWHERE:
        del fields[name]
    return {**metrics, **fields}


_STORED_ELSEWHERE = (
    "trainable_tokens", "gpu_seconds", "seconds_by_phase", "mfu", "peak_memory_bytes", "cost_usd",
    "windows", "base_revision", "packages",
)  # fmt: skip


def _tokens_per_second(new: Commit) -> float | None:
    seconds = compute_seconds(new.seconds)
    return new.result.context_tokens / seconds if seconds else None
