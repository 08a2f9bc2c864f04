"""Whose turn it is: one fleet of workers for all lineages of a database."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.records.scores import JUDGED
from babylon_tasks.records.steps import Trainer
from babylon_tasks.settings import Settings
from babylon_tasks.store import lineages
from babylon_tasks.store.database import Connection
from babylon_tasks.store.lineages import Stage
from babylon_tasks.store.queries import load
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import add_window, hours_ago, query, scored_windows

OWN = "babylon-agent"
Make = Callable[..., Fleet]


@pytest.fixture
def make_fleet(settings: Settings) -> Iterator[Make]:
    """Fleets of workers on the same database, with some settings changed."""
    made: list[Fleet] = []

    def make(**changes: object) -> Fleet:
        changed = settings.model_copy(update=changes)
        made.append(Fleet.of_deployment(changed, f"test:{len(made) + 1}"))
        return made[-1]

    yield make
    for fleet in made:
        fleet.database.close()


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    """Workers of lineages that the test makes; MODEL_NAME's own is paused."""
    made = make_fleet()
    made.active()
    with made.database.transaction() as tx:
        tx.execute("UPDATE rl.lineages SET state = 'paused'")
    return made


def add_lineages(fleet: Fleet, *names: str, **config: str) -> None:
    """Lineages that take their first turns in this order."""
    with fleet.database.transaction() as tx:
        for name in names:
            made = Lineage(name, "none", primary=False, config=config, created_by="test")
            assert lineages.create(tx, made)


def add_windows(fleet: Fleet, name: str, count: int, state: str = "due") -> None:
    with fleet.database.transaction() as tx:
        tx.execute(
            """INSERT INTO rl.windows (window_id, model_name, state)
               SELECT to_char(timestamp '2025-01-01' + make_interval(hours => n),
                              'YYYY-MM-DD"T"HH24:00'), %s, %s FROM generate_series(1, %s) AS n""",
            [name, state, count],
        )


def wait_a_second(fleet: Fleet) -> None:
    """As if no turn were taken for a second."""
    with fleet.database.transaction() as tx:
        tx.execute("UPDATE rl.turns SET taken_at = taken_at - interval '1 second'")


def turns(fleet: Fleet, stage: Stage, count: int) -> list[str]:
    """Whose turn it is, so many times, at a distance of a second. Nobody claims any work."""
    taken = []
    for _ in range(count):
        wait_a_second(fleet)
        taken.append(next(fleet.in_turn(stage)).lineage.name)
    return taken


# --- the order --------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "state"), [("score", "due"), ("train", "scored")])
def test_the_one_that_waited_longest_is_next(fleet: Fleet, stage: Stage, state: str) -> None:
    add_lineages(fleet, "a", "b", "c")
    for name, windows in {"c": 1, "a": 200, "b": 1}.items():
        add_windows(fleet, name, windows, state)
    assert turns(fleet, stage, 7) == ["a", "b", "c", "a", "b", "c", "a"]
    assert [context.lineage.name for context in fleet.in_turn(stage)] == ["b", "c", "a"]


def test_a_quiet_lineage_does_not_wait_for_a_busy_one(fleet: Fleet) -> None:
    add_lineages(fleet, "busy", "quiet")
    add_windows(fleet, "busy", 1000)
    assert turns(fleet, "score", 5) == ["busy"] * 5
    add_windows(fleet, "quiet", 1)
    assert turns(fleet, "score", 1) == ["quiet"]


def test_one_that_fails_before_its_claim_starves_nobody(fleet: Fleet) -> None:
    """Its turn is over all the same, and within one task others come after it."""
    add_lineages(fleet, "fails", "works")
    for name in ("fails", "works"):
        add_windows(fleet, name, 1, "scored")
    assert turns(fleet, "train", 4) == ["fails", "works", "fails", "works"]
    in_turn = fleet.in_turn("train", excluded={"fails"})
    assert [context.lineage.name for context in in_turn] == ["works"]
    assert fleet.waits_for_step({"fails"})
    assert not fleet.waits_for_step({"fails", "works"})


def test_a_weight_is_a_share_of_the_turns(fleet: Fleet) -> None:
    for weight in (1, 2, 4):
        add_lineages(fleet, f"weighs-{weight}", LINEAGE_WEIGHT=str(weight))
        add_windows(fleet, f"weighs-{weight}", 1)
    shares = Counter(turns(fleet, "score", 140))
    # Exactly so only for turns of equal length: a wait is real time.
    assert shares["weighs-1"] == pytest.approx(20, abs=14)
    assert shares["weighs-2"] == pytest.approx(40, abs=14)
    assert shares["weighs-4"] == pytest.approx(80, abs=20)


def test_what_others_do_already_is_nobodys_turn(fleet: Fleet) -> None:
    add_lineages(fleet, "taken", "free", "judged", "waits")
    add_windows(fleet, "taken", 2)
    add_windows(fleet, "judged", 1)
    add_windows(fleet, "free", 2)
    add_windows(fleet, "waits", 1)
    with fleet.database.transaction() as tx:
        tx.execute("""UPDATE rl.windows SET not_before = now() + interval '1 minute'
                       WHERE model_name = 'waits'""")
        tx.execute("UPDATE rl.windows SET scoring = 'ruler' WHERE model_name = 'judged'")
        tx.execute("""INSERT INTO rl.leases (resource, token, expires_at)
                      SELECT 'window/taken/' || window_id, 1, now() + interval '1 minute'
                        FROM rl.windows WHERE model_name = 'taken'""")
        tx.execute("""INSERT INTO rl.leases (resource, token, expires_at)
                      VALUES ('judge/judged', 1, now() + interval '1 minute')""")
    assert [context.lineage.name for context in fleet.in_turn("score")] == ["free"]
    with fleet.database.transaction() as tx:
        tx.execute("UPDATE rl.leases SET expires_at = now() - interval '1 second'")
    in_turn = fleet.in_turn("score")
    assert [context.lineage.name for context in in_turn] == ["taken", "judged", "free"]


# --- at the same moment -----------------------------------------------------------------------


def take(tx: Connection, stage: Stage, names: Sequence[str], settings: Settings) -> str | None:
    return lineages.take_turn(tx, stage, dict.fromkeys(names, settings), JUDGED)


def test_workers_that_ask_at_once_get_different_lineages(make_fleet: Make, fleet: Fleet) -> None:
    names = ["a", "b"]
    add_lineages(fleet, *names)
    for name in names:
        add_windows(fleet, name, 50)
    others = [make_fleet() for _ in range(2)]
    with fleet.database.transaction() as tx, others[0].database.transaction() as tx_2:
        assert take(tx, "score", names, fleet.settings) == "a"
        assert take(tx_2, "score", names, fleet.settings) == "b"
        with others[1].database.transaction() as tx_3:
            assert take(tx_3, "score", names, fleet.settings) == "a"  # several may score for one


def test_nobody_gets_a_lineage_that_another_is_about_to_train(
    make_fleet: Make, fleet: Fleet
) -> None:
    names = ["a", "b"]
    add_lineages(fleet, *names)
    for name in names:
        add_windows(fleet, name, 1, "scored")
    others = [make_fleet() for _ in range(2)]
    with fleet.database.transaction() as tx, others[0].database.transaction() as tx_2:
        assert take(tx, "train", names, fleet.settings) == "a"
        assert take(tx_2, "train", names, fleet.settings) == "b"
        with others[1].database.transaction() as tx_3:
            assert take(tx_3, "train", names, fleet.settings) is None


def test_commits_of_lineages_that_the_app_does_not_know_wait_for_nobody(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """Only the app's versions are given out one at a time."""
    beside = make_context(model_name="beside", primary=False)
    scored_windows(beside, 2)
    url = beside.settings.postgres()
    with psycopg.connect(url) as another, another.transaction():
        another.execute(load("steps")["lock_versions"])
        report = pipeline.train(beside, trainer)
    assert report
    assert report.version == "v1.0.0"


# --- who is served ----------------------------------------------------------------------------


def test_lineages_confines_a_worker(make_fleet: Make, fleet: Fleet) -> None:
    add_lineages(fleet, "a", "b", "c")
    for name in "abc":
        add_windows(fleet, name, 1)
    confined = make_fleet(lineages="c,a")
    assert [context.lineage.name for context in confined.in_turn("score")] == ["a", "c"]
    with fleet.database.transaction() as tx:
        tx.execute("UPDATE rl.windows SET state = 'scored' WHERE model_name = 'b'")
    assert not confined.waits_for_step(())
    assert fleet.waits_for_step(())


def test_neither_paused_nor_retired_lineages_are_served(fleet: Fleet) -> None:
    add_lineages(fleet, "active", "paused", "retired")
    for name in ("active", "paused", "retired"):
        add_windows(fleet, name, 1)
    with fleet.database.transaction() as tx:
        tx.execute("UPDATE rl.lineages SET state = name WHERE name <> %s", [OWN])
    assert [context.lineage.name for context in fleet.active()] == ["active"]
    assert [context.lineage.name for context in fleet.in_turn("score")] == ["active"]
    assert fleet.context("retired").lineage.state == LineageState.RETIRED


def test_a_lineage_that_is_paused_meanwhile_is_passed_by(fleet: Fleet) -> None:
    add_lineages(fleet, "a", "b")
    for name in "ab":
        add_windows(fleet, name, 1)
    in_turn = fleet.in_turn("score")
    assert next(in_turn).lineage.name == "a"
    with fleet.database.transaction() as tx:
        tx.execute("UPDATE rl.lineages SET state = 'paused' WHERE name = 'b'")
    assert list(in_turn) == []


@pytest.mark.parametrize("weight", ["0", "many", "1e400"])
def test_an_override_out_of_range_leaves_out_its_lineage_alone(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, weight: str
) -> None:
    add_lineages(fleet, "odd", LINEAGE_WEIGHT=weight)
    add_lineages(fleet, "unknown", NO_SETTING="1")
    add_lineages(fleet, "empty", LINEAGE_WEIGHT="", SCORING="")  # as without an override
    add_lineages(fleet, "good")
    for name in ("odd", "unknown", "empty", "good"):
        add_windows(fleet, name, 1)
    for _ in range(2):
        in_turn = fleet.in_turn("score")
        assert [context.lineage.name for context in in_turn] == ["empty", "good"]
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 2  # one each, not one a look
    assert lines[0].startswith("lineage odd is not served: LINEAGE_WEIGHT: ")
    assert lines[1].startswith("lineage unknown is not served: NO_SETTING is no setting")


# --- what it costs ----------------------------------------------------------------------------


def index_scans(fleet: Fleet, act: Callable[[], object]) -> int:
    """How often an action looks into the index of the windows of trajectories."""
    counts = []
    for number in range(2):
        if number:
            act()
        with fleet.database.transaction() as tx:
            tx.execute("SELECT pg_stat_force_next_flush()")
        with fleet.database.transaction() as tx:
            row = tx.execute(
                """SELECT idx_scan FROM pg_stat_all_indexes
                    WHERE indexrelname = 'rl_trajectories_window_idx'"""
            ).fetchone()
        assert row
        counts.append(row["idx_scan"])
    return int(counts[1] - counts[0])


def test_the_hours_are_counted_once_for_all_lineages(context: Context, fleet: Fleet) -> None:
    for hours in range(2, 6):
        add_window(context, hours_ago(hours))
    add_lineages(fleet, "a")
    alone = index_scans(fleet, lambda: pipeline.produce(*fleet.active()))
    assert alone >= 4
    add_lineages(fleet, *"bcdefgh", MIN_AGENTS_PER_WINDOW="3")
    made = index_scans(fleet, lambda: pipeline.produce(*fleet.active()))
    assert made == alone
    add_lineages(fleet, "other", AGENTS="agent-%")
    assert index_scans(fleet, lambda: pipeline.produce(*fleet.active())) == 2 * alone
    rows = query(context, "SELECT model_name, count(*) AS n FROM rl.windows GROUP BY 1 ORDER BY 1")
    assert {row["model_name"]: row["n"] for row in rows} == dict.fromkeys([*"abcdefgh", "other"], 4)


LOOKS = ["take_turn_to_score", "take_turn_to_train", "sweep", "claim_due", "reap_scores"]


@pytest.mark.parametrize("name", LOOKS)
def test_a_lease_is_found_by_its_index(fleet: Fleet, name: str) -> None:
    """window_id has a collation of its own: without care a claim reads all leases, many times."""
    parameters = {
        "names": ["a"], "weights": [1.0], "scorings": ["heuristic"], "judged": ["ruler"],
        "limit": 16, "model_name": "a", "scoring": "heuristic", "scorers": ["heuristic"],
        "only": None, "holder": "test", "lease_seconds": 30, "max_attempts": 3,
    }  # fmt: skip
    with fleet.database.transaction() as tx:
        tx.execute("SET LOCAL enable_seqscan = off")
        text = load("lineages", "transitions")[name]
        rows = tx.execute("EXPLAIN " + text, parameters).fetchall()
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert "leases_pkey" in plan
    assert "Seq Scan on leases" not in plan
