"""Every edge of the table at the head of transitions.sql, on a real row."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

import babylon_tasks.store
from babylon_tasks.store.queries import load
from tests.conftest import with_database

Connection = psycopg.Connection[DictRow]

FILE = Path(babylon_tasks.store.__file__).parent / "sql" / "transitions.sql"
SQL = load("transitions")
MODEL, PARENT, RESOURCE, TOKEN, REVISION = "m", "parent", "window/m/", 7, 3
NONE = "(none)"
STATES = (NONE, "due", "scored", "trained", "skipped", "failed")
ENTRY = re.compile(r"^-- (\S.*) → (\S.*?)  +([a-z_]+)  +(\S.*?)(?:  +(\S.*))?$")


@dataclass(frozen=True)
class Edge:
    """One way from a state to a state; `guards` are what else the row must match."""

    statement: str
    before: str
    after: str
    guards: frozenset[str]
    resets: frozenset[str]
    sets: frozenset[str]

    def __str__(self) -> str:
        return f"{self.statement}: {self.before} to {self.after}"


def words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def read_table() -> list[Edge]:
    """The edges that the comment names."""
    edges: list[Edge] = []
    lines = FILE.read_text().split("-- produce_windows --")[0].splitlines()
    for number, line in enumerate(lines):
        if not (entry := ENTRY.match(line)):
            continue
        columns: dict[str, str] = {}
        kind = ""
        for more in lines[number + 1 :]:
            if not (match := re.match(r"^--     (resets|sets|   )\s+(.*)$", more)):
                break
            kind = match[1].strip() or kind
            columns[kind] = columns.get(kind, "") + match[2]
        for before in words(entry[1]):
            for after in words(entry[2]):
                edges.append(
                    Edge(
                        statement=entry[3],
                        before=before,
                        after=before if after == "same" else after,
                        guards=frozenset(words(entry[5])),
                        resets=frozenset(words(columns.get("resets"))),
                        sets=frozenset(words(columns.get("sets"))),
                    )
                )
    return edges


EDGES = read_table()
FROM_ANY = [edge for edge in EDGES if "%(from_state)s" in SQL[edge.statement]]
REFUSALS = [
    (statement, state)
    for statement in sorted({edge.statement for edge in EDGES})
    for state in STATES
    if state not in {edge.before for edge in EDGES if edge.statement == statement}
]


@pytest.fixture(scope="module")
def module_database(postgres_url: str, migrated_template: str) -> str:
    """One database for all edges: each is rolled back. It goes with the server."""
    name = f"transitions_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')  # type: ignore[arg-type]
    return with_database(postgres_url, name)


@pytest.fixture
def tx(module_database: str) -> Iterator[Connection]:
    with psycopg.connect(module_database, row_factory=dict_row) as connection:
        yield connection
        connection.rollback()


# --- a window, and the statement --------------------------------------------------------------


def add_window(tx: Connection, state: str) -> str:
    """A window of two hours ago with three agents, and a row of which no column is as if new."""
    hour = tx.execute(
        """SELECT to_char(date_trunc('hour', rl.now() AT TIME ZONE 'utc') - interval '2 hours',
                          'YYYY-MM-DD"T"HH24:00') AS window_id"""
    ).fetchone()
    assert hour
    window: str = hour["window_id"]
    for agent in ("a", "b", "c"):
        tx.execute("""INSERT INTO "User" (id, "updatedAt") VALUES (%s, now())""", [agent])
        tx.execute(
            """INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime",
                   "durationMs", "windowId", "stepsJson", "rewardComponentsJson", "metricsJson",
                   "metadataJson", "totalReward", "episodeLength", "finalStatus", "updatedAt")
               VALUES (%s, %s, %s, now(), now(), 1, %s, '[]', '{}', '{}', '{}', 0, 1,
                       'completed', now())""",
            [agent, agent, agent, window],
        )
    if state == NONE:
        return window
    tx.execute(
        """INSERT INTO rl.windows (window_id, model_name, state, scoring, scorer, score_rev,
               attempts, not_before, last_error, reason, batch_id, trained_step, agents,
               trajectories, late, text_bytes, due_at, scored_at, trained_at, skipped_at, failed_at,
               claimed_by, may_share, funnel, by_version)
           SELECT %s, %s, %s, 'old', 'old', %s, 1, t, 'old', 'old', %s, 9, 2, 2, 8, 9, t, t, t, t,
                  t, 'old', 8, '{"old": 1}', '{"old": 1}'
             FROM (SELECT rl.now() - interval '1 hour') AS past (t)""",
        [window, MODEL, state, REVISION, "old" if state == "trained" else None],
    )
    return window


def read(tx: Connection, window: str) -> dict[str, Any]:
    row = tx.execute(
        "SELECT * FROM rl.windows WHERE window_id = %s AND model_name = %s", [window, MODEL]
    ).fetchone()
    return row or {}


def add_step(
    tx: Connection, model: str, step: int, window: str, given_up: bool = False, parent: int = 0
) -> None:
    tx.execute(
        """INSERT INTO rl.steps (model_name, step, parent_step, token, trainer, window_ids,
               trajectories, trainable_tokens, started_at, given_up_at)
           VALUES (%s, %s, %s, %s, 'noop', %s, 3, 1, rl.now(), CASE WHEN %s THEN rl.now() END)""",
        [model, step, parent, step, [window], given_up],
    )


def add_ancestor(tx: Connection, window: str) -> None:
    """The lineage m is forked from one whose step 7 trained the window; no column is as if new."""
    tx.execute(
        """INSERT INTO rl.lineages (name, base_model, created_by) VALUES (%s, 'b', 'p')""",
        [PARENT],
    )
    add_step(tx, PARENT, 7, window)
    tx.execute(
        """INSERT INTO rl.windows (window_id, model_name, state, scorer, score_rev, attempts,
               not_before, last_error, reason, batch_id, trained_step, agents, trajectories, late,
               text_bytes, due_at, scored_at, trained_at, funnel, by_version)
           SELECT %s, %s, 'trained', 'old', 5, 1, t, 'old', 'old', 'old', 7, 2, 2, 8, 9, t, t, t,
                  '{"old": 1}', '{"old": 1}'
             FROM (SELECT rl.now() - interval '1 hour') AS past (t)""",
        [window, PARENT],
    )


def hold_lease(tx: Connection, window: str, token: int = TOKEN, seconds: float = 30) -> None:
    tx.execute(
        """INSERT INTO rl.leases (resource, holder, token, expires_at)
           VALUES (%s, 'h', %s, rl.clock_timestamp() + make_interval(secs => %s))""",
        [RESOURCE + window, token, seconds],
    )


def run(tx: Connection, edge: Edge, window: str, revision: int = REVISION) -> None:
    """Run the edge's statement as the store does, with values that the row does not have."""
    step = 9 if edge.statement == "retry_step" else 10
    if edge.statement in ("retry_step", "restore_trained"):
        add_step(tx, MODEL, step, window, given_up="given_up" in edge.guards)
    if edge.statement == "inherit_windows":
        add_ancestor(tx, window)
    if edge.statement in ("reap_scores", "reap_steps"):
        tx.execute(
            """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder)
               VALUES (%s, %s, %s, %s, 'dead')""",
            [MODEL, window, TOKEN, "score" if edge.statement == "reap_scores" else "train"],
        )
    if edge.statement == "take_back_attempts":
        tx.execute(
            """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, ended_at,
                                        outcome)
               VALUES (%s, %s, %s, %s, 'cut off', rl.now(), 'lost')""",
            [MODEL, window, TOKEN, "score" if edge.after == "due" else "train"],
        )
    if edge.statement == "end_waits":
        tx.execute(
            """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, started_at)
               VALUES (%s, %s, %s, 'score', 'then', rl.now() + interval '1 hour')""",
            [MODEL, window, TOKEN],
        )
        tx.execute(
            """UPDATE rl.windows SET not_before = rl.now() + interval '1 hour'
                WHERE window_id = %s AND state IN ('due', 'scored')""",
            [window],
        )
    parameters = {
        "model_name": MODEL,
        "window_id": window,
        "window_ids": [window],
        "from_state": edge.before,
        "state": edge.after,
        "score_rev": revision,
        "score_revs": [revision],
        "lookback_hours": 5,
        "settle_seconds": 0,
        "min_agents": 2,
        "excluded": [],
        "agents": 3,
        "name": MODEL,
        "forked_from": PARENT,
        "forked_step": 7,
        "trajectories": 3,
        "batch_id": "new",
        "scoring": "new",
        "scorer": "new",
        "reason": "new" if edge.after == "skipped" else None,
        "last_error": None if edge.after == "skipped" else "new",
        "text_bytes": 3,
        "funnel": Jsonb({} if edge.after == "failed" else {"new": 1}),
        "funnels": [Jsonb({"new": 1})],
        "by_version": Jsonb({"new": 1}),
        "holder": "new",
        "resource": RESOURCE + window,
        "token": TOKEN,
        "tokens": [TOKEN],
        "outcome": "lost",
        "error": "new",
        "step": step,
        "attempts": 1 if edge.after == "skipped" else 2,
        "wait_seconds": 60,
        "lease_seconds": 30,
        "limit": 16,
        "only": None,
        "scorers": ["old"],
        "least_seconds": 60,
        "most_seconds": 3600,
        "may_share": 4,
        "rewritten": "new",
        "max_attempts": 2 if edge.after == "failed" else 9,
    }
    if edge.statement == "produce_windows":
        parameters |= {
            "model_names": [MODEL],
            "min_agents": [2],
            "lookback_hours": [5],
            "settle_seconds": [0],
            "agents": None,
        }
    tx.execute(SQL[edge.statement], parameters)


# --- the edges --------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_an_edge_changes_what_the_table_says_and_nothing_else(tx: Connection, edge: Edge) -> None:
    window = add_window(tx, edge.before)
    before = read(tx, window)
    if "lease" in edge.guards:
        hold_lease(tx, window)
    run(tx, edge, window)
    after = read(tx, window)
    assert after["state"] == edge.after
    tx.execute("INSERT INTO rl.windows (window_id, model_name, state) VALUES ('new', 'm', 'due')")
    new = read(tx, "new")
    assert {name: after[name] for name in edge.resets} == {name: new[name] for name in edge.resets}
    if edge.before == NONE:
        before = {**new, "window_id": window, "state": edge.after}
    changed = {name for name in after if after[name] != before[name]} - {"state"}
    assert changed == edge.resets | edge.sets


@pytest.mark.parametrize(("statement", "state"), REFUSALS)
def test_every_other_state_is_refused(tx: Connection, statement: str, state: str) -> None:
    window = add_window(tx, state)
    before = read(tx, window)
    hold_lease(tx, window, token=TOKEN if statement == "mark_scored" else TOKEN + 1, seconds=30)
    for edge in EDGES:
        if edge.statement == statement:
            with tx.transaction(force_rollback=True):
                run(tx, edge, window)
                assert read(tx, window) == before


@pytest.mark.parametrize("edge", FROM_ANY, ids=str)
def test_an_edge_taken_for_another_state_is_refused(tx: Connection, edge: Edge) -> None:
    """Who read a row in one state does not move it from another."""
    sources = {other.before for other in EDGES if other.statement == edge.statement}
    for state in sources - {edge.before}:
        window = add_window(tx, state)
        before = read(tx, window)
        run(tx, edge, window)
        assert read(tx, window) == before


@pytest.mark.parametrize("edge", [e for e in EDGES if "score_rev" in e.guards], ids=str)
def test_a_window_that_was_scored_again_is_refused(tx: Connection, edge: Edge) -> None:
    window = add_window(tx, edge.before)
    before = read(tx, window)
    if "lease" in edge.guards:
        hold_lease(tx, window)
    run(tx, edge, window, revision=REVISION - 1)
    assert read(tx, window) == before


@pytest.mark.parametrize("lease", ["none", "of another", "ran out"])
@pytest.mark.parametrize("edge", [e for e in EDGES if "lease" in e.guards], ids=str)
def test_a_lost_lease_is_refused(tx: Connection, edge: Edge, lease: str) -> None:
    window = add_window(tx, edge.before)
    before = read(tx, window)
    if lease != "none":
        hold_lease(
            tx, window, TOKEN + (lease == "of another"), seconds=-1 if lease == "ran out" else 30
        )
    run(tx, edge, window)
    assert read(tx, window) == before


@pytest.mark.parametrize("state", STATES[1:])
def test_a_window_whose_lease_lives_is_not_taken_for_lost(tx: Connection, state: str) -> None:
    (edge,) = (e for e in EDGES if e.statement == "reap_scores" and e.after == "due")
    window = add_window(tx, state)
    before = read(tx, window)
    hold_lease(tx, window)
    run(tx, edge, window)
    assert read(tx, window) == before


@pytest.mark.parametrize("state", STATES[1:])
def test_a_claim_leases_what_is_due_and_begins_an_attempt(tx: Connection, state: str) -> None:
    (edge,) = (e for e in EDGES if e.statement == "claim_due")
    window = add_window(tx, state)
    run(tx, edge, window)
    held = tx.execute("SELECT resource, token FROM rl.leases").fetchall()
    begun = tx.execute("SELECT window_id, token FROM rl.attempts WHERE stage = 'score'").fetchall()
    assert [row["resource"] for row in held] == [RESOURCE + window] * (state == "due")
    assert begun == [{"window_id": window, "token": row["token"]} for row in held]


def test_retry_without_names_takes_the_failed_ones_alone(tx: Connection) -> None:
    window = add_window(tx, "skipped")
    retry = {"model_name": MODEL, "window_ids": None}
    assert tx.execute(SQL["retry_windows"], retry).fetchall() == []
    tx.execute("UPDATE rl.windows SET state = 'failed'")
    assert [r["window_id"] for r in tx.execute(SQL["retry_windows"], retry)] == [window]


def test_a_request_keeps_the_window_that_it_has(tx: Connection) -> None:
    (edge,) = (e for e in EDGES if e.statement == "attach_request" and e.before == "due")
    window = add_window(tx, "due")
    tx.execute("UPDATE rl.windows SET batch_id = 'first'")
    run(tx, edge, window)
    assert read(tx, window)["batch_id"] == "first"


# --- the file ---------------------------------------------------------------------------------


def test_the_table_names_every_statement() -> None:
    assert {edge.statement for edge in EDGES} == set(SQL)
    arrows = sum("→" in line for line in FILE.read_text().splitlines()[6:])
    assert arrows == sum(bool(ENTRY.match(line)) for line in FILE.read_text().splitlines())


def test_a_statement_asks_for_the_guards_that_the_table_names() -> None:
    for edge in EDGES:
        text = SQL[edge.statement]
        assert ("lease" in edge.guards) == ("%(token)s" in text), edge
        assert ("score_rev" in edge.guards) == ("%(score_rev" in text), edge


def test_nobody_else_changes_windows() -> None:
    changes = re.compile(r"(UPDATE|INTO|FROM ONLY|DELETE\s+FROM|TRUNCATE)\s+rl\.windows", re.I)
    root = FILE.parents[3]
    files = [f for d in ("babylon_tasks", "workers") for f in (root / d).rglob("*.*")]
    sources = [f for f in files if f.suffix in (".sql", ".py")]
    assert [f for f in sources if changes.search(f.read_text())] == [FILE]
