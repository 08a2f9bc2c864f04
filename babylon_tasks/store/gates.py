"""Reads how the gates of lineages stand: `rl.exams` and `rl.experiments` in one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from babylon_tasks.records.experiments import (
    ExperimentState,
    Standing,
)
from babylon_tasks.records.gates import (
    PAUSED_BY,
    EndedExperiment,
    FailedExam,
    Gate,
    RunningExperiment,
)
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("gates")


def read(tx: Connection, names: Sequence[str]) -> dict[str, Gate]:
    """Return the gate of each of these lineages, also of those that have no row yet."""
    values = {"names": list(names), "paused_by": PAUSED_BY}
    return {row["name"]: _gate(row) for row in tx.execute(_SQL["read_gates"], values).fetchall()}


def step_states(tx: Connection, model_name: str) -> dict[int, str]:
    """Return where each step of a lineage stands at the gate; steps without an exam have none.

    The newest step counts as one that awaits its exam if it has no verdict and does not serve.
    """
    rows = tx.execute(_SQL["gate_of_steps"], {"model_name": model_name}).fetchall()
    return {row["step"]: row["state"] for row in rows if row["state"]}


def _gate(row: Mapping[str, Any]) -> Gate:
    return Gate(
        lineage=row["name"],
        gated=row["gated"],
        served_step=row["served_step"],
        awaits_exam=row["awaits_exam"],
        attempts=row["attempts"],
        passed=row["passed"],
        failures=row["failures"],
        paused_at=row["paused_at"],
        failed=None
        if row["failed_step"] is None
        else FailedExam(row["failed_step"], row["failed_reason"] or "", row["failed_at"]),
        experiment=None if row["tried_step"] is None else _running(row),
        ended=None
        if row["ended_step"] is None
        else EndedExperiment(
            row["ended_step"],
            ExperimentState(row["ended_state"]),
            row["ended_reason"],
            row["ended_at"],
        ),
    )


def _running(row: Mapping[str, Any]) -> RunningExperiment:
    return RunningExperiment(
        step=row["tried_step"],
        served_step=row["beside_step"],
        percent=row["percent"],
        reason=row["tried_reason"],
        first_window=row["first_window"],
        started_at=row["started_at"],
        standing=_standing(row["standing"]),
    )


def _standing(shown: Any) -> Standing | None:
    return None if shown is None else msgspec.convert(shown, Standing)
