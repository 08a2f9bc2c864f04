"""Reads and writes `rl.judgments`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("judgments")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A good answer: by position of `trajectory_ids`, scores in [0, 1] and their explanations."""

    trajectory_ids: Sequence[str]
    scores: Sequence[float]
    explanations: Sequence[str]


@dataclass(frozen=True, slots=True)
class Judgment:
    """A row of `rl.judgments`: an answer that was paid for, good (`fault` is None) or not."""

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


@dataclass(frozen=True, slots=True)
class Spent:
    """What judges cost since midnight UTC; answers of unknown price count no dollars."""

    answers: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a window cost; None where nobody was asked, or no price was known."""

    tokens: int | None
    usd: Decimal | None


def find(connection: Connection, question: str) -> Verdict | None:
    """Return the answer to this very question, if it was bought before."""
    with connection.cursor(row_factory=class_row(Verdict)) as cursor:
        return cursor.execute(_SQL["find_judgment"], {"question": question}).fetchone()


def add(connection: Connection, judgment: Judgment) -> None:
    """Keep an answer."""
    connection.execute(_SQL["add_judgment"], asdict(judgment))


def spent_today(connection: Connection) -> Spent:
    """Return what counts towards JUDGE_DAILY_USD."""
    with connection.cursor(row_factory=class_row(Spent)) as cursor:
        row = cursor.execute(_SQL["spent_today"]).fetchone()
    assert row is not None
    return row


def cost(connection: Connection, model_name: str, window_id: str) -> Cost:
    """Return what was paid for a window in all."""
    with connection.cursor(row_factory=class_row(Cost)) as cursor:
        row = cursor.execute(
            _SQL["cost_of_window"], {"model_name": model_name, "window_id": window_id}
        ).fetchone()
    assert row is not None
    return row
