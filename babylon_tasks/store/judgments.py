"""Reads and writes `rl.judgments`: the judge's answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Literal

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("judgments")

# Only what is asked for scoring is part of a window's cost.
Purpose = Literal["scoring", "comparison"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A usable answer: scores in [0, 1] and explanations, in the order of `trajectory_ids`.

    `tokens` and `usd` are what it cost when it was bought; `usd` is None if the price is unknown.
    """

    trajectory_ids: Sequence[str]
    scores: Sequence[float]
    explanations: Sequence[str]
    tokens: int
    usd: float | None


@dataclass(frozen=True, slots=True)
class Judgment:
    """A row of `rl.judgments`: an answer that was paid for; `fault` is None if it is usable."""

    model_name: str
    window_id: str
    question: str
    judge_model: str
    rubric_hash: str
    trajectory_ids: list[str]
    scores: list[float] | None
    explanations: list[str] | None
    fault: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    purpose: Purpose
    id: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of all judges since midnight UTC; an answer of unknown price counts as 0 dollars."""

    answers: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Cost:
    """A window's cost; None if no judge was asked, or its price is unknown."""

    tokens: int | None
    usd: Decimal | None


def find(connection: Connection, question: str) -> Verdict | None:
    """Return the stored answer to exactly this question, or None."""
    with connection.cursor(row_factory=class_row(Verdict)) as cursor:
        return cursor.execute(_SQL["find_judgment"], {"question": question}).fetchone()


def add(connection: Connection, judgment: Judgment) -> None:
    """Store an answer; a second time it changes nothing."""
    connection.execute(_SQL["add_judgment"], asdict(judgment))


def spent_today(connection: Connection) -> Spent:
    """Return the cost that counts towards JUDGE_DAILY_USD."""
    with connection.cursor(row_factory=class_row(Spent)) as cursor:
        row = cursor.execute(_SQL["spent_today"]).fetchone()
    assert row is not None
    return row


def cost(connection: Connection, model_name: str, window_id: str) -> Cost:
    """Return the cost of all answers that were bought to score a window."""
    with connection.cursor(row_factory=class_row(Cost)) as cursor:
        row = cursor.execute(
            _SQL["cost_of_window"], {"model_name": model_name, "window_id": window_id}
        ).fetchone()
    assert row is not None
    return row
