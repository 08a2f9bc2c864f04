"""Whether the tables in `public` are those that Babylon makes: nothing is written into others.

Only what our queries read and write is looked at. The app may have more columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from babylon_tasks.errors import UserError
from babylon_tasks.store.queries import load

_SQL = load("app_tables")

_MOST_NAMED = 4  # what is wrong with a table, in one line
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "p": "partitioned",
          "S": "a sequence", "c": "a type"}  # fmt: skip

# What a column may be, by Postgres' own names of types.
_TEXT = frozenset({"text", "varchar"})
_JSON = _TEXT | {"json", "jsonb"}
_FLAG = frozenset({"bool"})
_TIME = frozenset({"timestamp", "timestamptz"})
_NUMBER = frozenset({"float8", "float4", "numeric"})
_RANK = _NUMBER | {"int2", "int4", "int8"}
_NAMES = {"text": _TEXT, "text, json or jsonb": _JSON, "boolean": _FLAG, "timestamp": _TIME,
          "double precision": _NUMBER, "integer": _RANK}  # fmt: skip


def _columns(**columns: frozenset[str]) -> dict[str, frozenset[str]]:
    return columns


TABLES = {
    # Only a table of traces that we make refers to it.
    "User": _columns(id=_TEXT, username=_TEXT, isAgent=_FLAG),
    "trajectories": _columns(
        trajectoryId=_TEXT, agentId=_TEXT, windowId=_TEXT, scenarioId=_TEXT, stepsJson=_JSON,
        isTrainingData=_FLAG, isEvaluation=_FLAG, usedInTraining=_FLAG, trainedInBatch=_TEXT,
        aiJudgeReward=_NUMBER, aiJudgeReasoning=_TEXT, judgedAt=_TIME, createdAt=_TIME,
        updatedAt=_TIME,
    ),
    "market_outcomes": _columns(
        id=_TEXT, windowId=_TEXT, stockTicker=_TEXT, startPrice=_RANK, endPrice=_RANK,
        changePercent=_RANK, predictionMarketId=_TEXT, question=_TEXT, outcome=_TEXT,
    ),
    "training_batches": _columns(
        id=_TEXT, batchId=_TEXT, scenarioId=_TEXT, baseModel=_TEXT, modelVersion=_TEXT,
        trajectoryIds=_TEXT, rewardsJson=_TEXT, trainingLoss=_NUMBER, status=_TEXT, error=_TEXT,
        createdAt=_TIME, startedAt=_TIME, completedAt=_TIME,
    ),
    "trained_models": _columns(
        id=_TEXT, modelId=_TEXT, version=_TEXT, baseModel=_TEXT, trainingBatch=_TEXT, status=_TEXT,
        storagePath=_TEXT, avgReward=_NUMBER, deployedAt=_TIME, archivedAt=_TIME, updatedAt=_TIME,
        agentsUsing=_RANK,
    ),
    "reward_judgments": _columns(
        id=_TEXT, trajectoryId=_TEXT, judgeModel=_TEXT, judgeVersion=_TEXT, overallScore=_NUMBER,
        componentScoresJson=_TEXT, rank=_RANK, normalizedScore=_NUMBER, groupId=_TEXT,
        reasoning=_TEXT, strengthsJson=_TEXT, weaknessesJson=_TEXT, criteriaJson=_TEXT,
        judgedAt=_TIME,
    ),
}  # fmt: skip
# Tables into which we insert, and columns of theirs that our rows give beside those above.
_WRITTEN = ("training_batches", "trained_models", "reward_judgments")


def require_babylons(connection: psycopg.Connection[Any]) -> None:
    """Refuse a database whose tables of these names are another app's, or that is not in UTF-8.

    Only the catalog is read.

    Tables that do not exist are left out: `babylon migrate` makes them.

    Raises:
        UserError: A table cannot be used; the message says what it lacks, and what to do.
    """
    _require_utf8(connection)
    tables = _describe(connection)
    if "trajectories" not in tables:
        elsewhere = [row["schema"] for row in _rows(connection, "find_elsewhere")]
        if elsewhere:
            raise UserError(
                f"Babylon's tables are in the schema {elsewhere[0]!r}, and are read from public "
                "only: move them with ALTER TABLE … SET SCHEMA public, or use another database"
            )
    for table, rows in tables.items():
        if table == "User" and "trajectories" in tables:
            continue
        if wrong := list(_wrong(table, rows, tables)):
            more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
            raise UserError(
                f"public.{table} is not Babylon's table: {', '.join(wrong[:_MOST_NAMED])}{more}; "
                "name Babylon's own database in DATABASE_URL, or one without such a table "
                "(migrations/001_add_babylon_tables.sql shows what it must be)"
            )


def _require_utf8(connection: psycopg.Connection[Any]) -> None:
    """In SQL_ASCII, psycopg reads bytes; in another encoding, not every text can be written."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise UserError(
            f"the database's encoding is {encoding}, not UTF8: restore a dump of it into one made "
            "with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )


def _describe(connection: psycopg.Connection[Any]) -> dict[str, list[dict[str, Any]]]:
    found = _rows(connection, "describe", {"tables": list(TABLES)})
    names = {row["table"] for row in found}
    return {
        name: [row for row in found if row["table"] == name] for name in TABLES if name in names
    }


def _rows(
    connection: psycopg.Connection[Any], query: str, parameters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[query], parameters).fetchall()


def _wrong(
    table: str, rows: Sequence[Mapping[str, Any]], tables: Mapping[str, Any]
) -> Iterator[str]:
    kind = rows[0]["kind"]
    if kind != "r" and not (table == "market_outcomes" and kind in "vmfp"):  # only read
        yield f"it is {_KINDS[kind]}, not a table"
        return
    columns = {row["column"]: row for row in rows}
    if table == "market_outcomes" and "windowId" not in columns:
        return  # of upstream's Python scripts: a migration warns that no outcomes are read
    for name, types in TABLES[table].items():
        if name not in columns:
            yield f'it has no column "{name}"'
        elif columns[name]["type"] not in types:
            wanted = next(label for label, same in _NAMES.items() if same == types)
            yield f'"{name}" is {columns[name]["type"]}, not {wanted}'
    if table in _WRITTEN:
        for name, column in columns.items():
            if column["must_be_given"] and name not in TABLES[table]:
                yield f'"{name}" must be given, and our rows do not give it'
    unique = {"User": "id", "trajectories": "trajectoryId", "reward_judgments": "trajectoryId"}
    name = unique.get(table, "")
    refers = (
        table == "reward_judgments"
        or {"User": "trajectories"}.get(table, "reward_judgments") not in tables
    )
    if refers and name in columns and not columns[name]["is_unique"]:
        yield f'"{name}" is not unique'
