"""Reads and writes `rl.experiments` and `rl.experiment_looks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import class_row

from babylon_tasks.records.experiments import (
    FAILED_PART,
    Arm,
    Experiment,
    ExperimentLook,
    ExperimentState,
    FailedAgents,
    Standing,
    WindowEvidence,
)
from babylon_tasks.store import shares
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.queries import load

_SQL = load("experiments")


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """A window that an experiment has to look at, and which scoring of it."""

    window_id: str
    score_rev: int


@dataclass(frozen=True, slots=True)
class Decided:
    """What is written of a look."""

    decision: str
    evidence: WindowEvidence
    standing: Standing


@dataclass(frozen=True, slots=True)
class EndedToLog:
    """An experiment that ended and is not on W&B yet; `standing` is None if it had no look."""

    id: int
    step: int
    served_step: int
    state: str
    percent: float
    ended_at: datetime
    standing: Standing | None


class _Evidence(msgspec.Struct, frozen=True):
    score_rev: int
    window: WindowEvidence
    standing: Standing


def candidate(tx: Connection, model_name: str) -> int | None:
    """Return the newest step that passed its exam and may serve next, or None."""
    row = tx.execute(_SQL["candidate"], {"model_name": model_name}).fetchone()
    return row["step"] if row else None


def set_gated(tx: Connection, model_name: str, gated: bool) -> None:
    """Note whether steps serve only after an exam, or by hand."""
    tx.execute(_SQL["set_gated"], {"model_name": model_name, "gated": gated})


def open_one(
    tx: Connection, model_name: str, steps: tuple[int, int], percent: float, by: tuple[str, str]
) -> int:
    """Begin an experiment, with the head locked; return its id. `begin_in` must follow.

    `steps` are the candidate and the one that serves; `by` says who, and why.
    """
    (step, served_step), (holder, reason) = steps, by
    row = tx.execute(
        _SQL["open_experiment"],
        {
            "model_name": model_name,
            "step": step,
            "served_step": served_step,
            "percent": percent,
            "reason": reason,
            "holder": holder,
        },
    ).fetchone()
    assert row is not None
    return int(row["id"])


def begin_in(tx: Connection, id_: int, window_id: str) -> None:
    """Note the first window in which the experiment's step answers."""
    tx.execute(_SQL["begin_in"], {"id": id_, "window_id": window_id})


def draw_of(id_: int) -> str:
    """Return the text by which an experiment's agents are drawn for each window."""
    return f"experiment-{id_}"


def running(tx: Connection, model_name: str) -> Experiment | None:
    """Return the experiment of a lineage that runs, or None."""
    with tx.cursor(row_factory=class_row(Experiment)) as cursor:
        return cursor.execute(_SQL["running_experiment"], {"model_name": model_name}).fetchone()


def listing(
    tx: Connection, model_name: str, step: int | None = None
) -> list[tuple[Experiment, list[ExperimentLook]]]:
    """Return the experiments of a lineage, or those with one of its steps, newest first.

    Each comes with its looks in the order of their windows.
    """
    with tx.cursor(row_factory=class_row(Experiment)) as cursor:
        found = cursor.execute(
            _SQL["list_experiments"], {"model_name": model_name, "step": step}
        ).fetchall()
    looks = _looks(tx, [each.id for each in found])
    return [(each, looks[each.id]) for each in found]


def looks(tx: Connection, id_: int) -> list[ExperimentLook]:
    """Return the looks of an experiment in the order of their windows."""
    return _looks(tx, [id_])[id_]


def go_on(tx: Connection, id_: int, percent: float, reason: str) -> None:
    """Note how an experiment stands, and how many of the agents it has from now on."""
    tx.execute(_SQL["go_on"], {"id": id_, "percent": percent, "reason": reason})


def end(tx: Connection, id_: int, state: ExperimentState, by: tuple[str, str]) -> None:
    """End an experiment, with the head locked; `by` says who, and why."""
    holder, reason = by
    values = {"id": id_, "state": state, "holder": holder, "reason": reason}
    tx.execute(_SQL["end_experiment"], values)


def stop(tx: Connection, model_name: str, by: tuple[str, str]) -> None:
    """End the experiment that runs, if there is one, and its share; `by` says who, and why."""
    experiment = running(tx, model_name)
    if experiment is not None:
        end(tx, experiment.id, ExperimentState.STOPPED, by)
        shares.end(tx, model_name, [], by, draw_of(experiment.id))


def write_look(
    tx: Connection, id_: int, window: ScoredWindow, decided: Decided, holder: str
) -> None:
    """Write what a window showed and what was decided; an earlier look at it is replaced."""
    evidence = _Evidence(window.score_rev, decided.evidence, decided.standing)
    tx.execute(
        _SQL["write_look"],
        {
            "id": id_,
            "window_id": window.window_id,
            "decision": decided.decision,
            "evidence": jsonb(msgspec.to_builtins(evidence)),
            "holder": holder,
        },
    )


def windows_to_look_at(tx: Connection, id_: int) -> list[ScoredWindow]:
    """Return the windows of an experiment that were scored and not looked at since, in order."""
    with tx.cursor(row_factory=class_row(ScoredWindow)) as cursor:
        return cursor.execute(_SQL["windows_to_look_at"], {"id": id_}).fetchall()


def window_evidence(
    tx: Connection, model_name: str, experiment: Experiment, window_id: str
) -> WindowEvidence:
    """Return what a scored window shows: the runs that one of the two versions alone answered."""
    steps = {"step": experiment.step, "served_step": experiment.served_step}
    rows = tx.execute(
        _SQL["window_evidence"], {"model_name": model_name, "window_id": window_id, **steps}
    ).fetchall()
    arms = {row["step"]: Arm(row["runs"], row["mean"], row["squares"]) for row in rows}
    none = Arm(0, 0.0, 0.0)
    return WindowEvidence(
        served=arms.get(experiment.served_step, none), candidate=arms.get(experiment.step, none)
    )


def failed_agents(tx: Connection, model_name: str, experiment: Experiment) -> list[FailedAgents]:
    """Return the agents of each version, in each window of the experiment, and the failed ones."""
    with tx.cursor(row_factory=class_row(FailedAgents)) as cursor:
        return cursor.execute(
            _SQL["failed_agents"],
            {
                "model_name": model_name,
                "window_id": experiment.first_window,
                "step": experiment.step,
                "served_step": experiment.served_step,
                "failed_part": FAILED_PART,
            },
        ).fetchall()


def answers_agents(tx: Connection, model_name: str) -> bool:
    """Tell whether the endpoint answered agents of a lineage in the last two complete windows.

    What it answered in the window of now counts too.
    """
    row = tx.execute(_SQL["answers_agents"], {"model_name": model_name}).fetchone()
    return bool(row and row["answers"])


def changed_by_hand(tx: Connection, id_: int) -> str | None:
    """Return what a person did that ends an experiment, or None."""
    row = tx.execute(_SQL["changed_by_hand"], {"id": id_}).fetchone()
    return row["why"] if row else None


def shared_by_hand(tx: Connection, model_name: str) -> bool:
    """Tell whether a person gives a version of a lineage a share, now or soon."""
    row = tx.execute(_SQL["shared_by_hand"], {"model_name": model_name}).fetchone()
    return bool(row and row["shared"])


def ended_to_log(tx: Connection, model_name: str, limit: int) -> list[EndedToLog]:
    """Return the ended experiments that are not on W&B yet, in the order in which they ended."""
    values = {"model_name": model_name, "limit": limit}
    rows = tx.execute(_SQL["experiments_to_log"], values).fetchall()
    return [
        EndedToLog(
            **{**row, "standing": row["standing"] and msgspec.convert(row["standing"], Standing)}
        )
        for row in rows
    ]


def ended_logged(tx: Connection, ids: Sequence[int]) -> None:
    """Note that the ends of these experiments are on W&B."""
    tx.execute(_SQL["experiments_logged"], {"ids": list(ids)})


def to_decide(tx: Connection, modes: Mapping[str, str]) -> list[str]:
    """Return the lineages of which there is something to publish or to decide, by name.

    `modes` has the PUBLISH of each.
    """
    values: dict[str, Any] = {"names": list(modes), "modes": list(modes.values())}
    rows = tx.execute(_SQL["to_decide"], {**values, "failed_part": FAILED_PART}).fetchall()
    return [row["name"] for row in rows]


def _looks(tx: Connection, ids: list[int]) -> dict[int, list[ExperimentLook]]:
    found: dict[int, list[ExperimentLook]] = {id_: [] for id_ in ids}
    for row in tx.execute(_SQL["list_looks"], {"ids": ids}).fetchall():
        evidence = msgspec.convert(row["evidence"], _Evidence)
        look = ExperimentLook(
            row["window_id"],
            row["decision"],
            evidence.score_rev,
            evidence.window,
            evidence.standing,
            row["at"],
        )
        found[row["experiment_id"]].append(look)
    return found
