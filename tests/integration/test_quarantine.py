"""rl.quarantine: each lineage has its rows, beside workers of release 0.1.0 that know of none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.recorded_steps import Unusable
from babylon_tasks.settings import Settings
from babylon_tasks.store import migrate as runner
from babylon_tasks.store import scores
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.migrate import load_migrations, migrate, migrations_folder
from babylon_tasks.work.context import Context
from tests.rows import add_trajectory, add_window, hours_ago, query, steps

MakeContext = Callable[..., Context]
MIGRATION = "012_key_quarantine_by_lineage"
LIMIT = 8192  # bytes; a trace of 50 steps has more

# As release 0.1.0 has them.
OLD_RELEASE = """
DELETE FROM rl.quarantine
 WHERE window_id = %(window_id)s AND trajectory_id <> ALL (%(trajectory_ids)s)
"""
OLD_QUARANTINE = """
INSERT INTO rl.quarantine (trajectory_id, window_id, reason, detail, at)
SELECT q.trajectory_id, %(window_id)s, q.reason, q.detail, rl.now()
  FROM unnest(%(trajectory_ids)s::text[], %(reasons)s::text[], %(details)s::text[])
       AS q (trajectory_id, reason, detail)
ON CONFLICT (trajectory_id) DO UPDATE
   SET window_id = excluded.window_id, reason = excluded.reason, detail = excluded.detail,
       at = excluded.at
"""
OLD_REPORT = """
SELECT (SELECT count(*)::int FROM rl.quarantine q WHERE q.window_id = w.window_id) AS quarantined
  FROM rl.windows w WHERE w.model_name = %s
"""


def quarantine_of_0_1_0(
    connection: Connection, _: str, window_id: str, unusable: Mapping[str, Unusable]
) -> None:
    """Quarantine as a worker of release 0.1.0 does."""
    rows = {
        "window_id": window_id,
        "trajectory_ids": list(unusable),
        "reasons": [each.reason for each in unusable.values()],
        "details": [each.detail for each in unusable.values()],
    }
    connection.execute(OLD_RELEASE, rows)
    connection.execute(OLD_QUARANTINE, rows)


@pytest.fixture
def old_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Context], list[str]]:
    """Scores as a worker of release 0.1.0 does."""

    def score(context: Context) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(scores, "quarantine", quarantine_of_0_1_0)
            return pipeline.score(context)

    return score


@pytest.fixture
def strict(make_context: MakeContext) -> Context:
    """The primary lineage, which does not read large traces."""
    return make_context(max_trace_bytes=LIMIT)


@pytest.fixture
def lenient(make_context: MakeContext) -> Context:
    """Another lineage on the same windows, which does."""
    return make_context(model_name="lenient", primary=False)


def window_with_bad_traces(context: Context) -> tuple[str, str, str]:
    """A window, and in it the ids of a large trace and of one that nobody can read."""
    window = hours_ago(2)
    add_window(context, window)
    large = add_trajectory(context, window, "large", stepsJson=steps(500, 50))
    broken = add_trajectory(context, window, "broken", stepsJson="[{")
    return window, large, broken


def score_again(context: Context, window: str, score: Callable[[Context], list[str]]) -> None:
    query(
        context,
        "UPDATE rl.windows SET state = 'due' WHERE model_name = %s RETURNING 1",
        context.lineage.name,
    )
    assert score(context) == [window]


def set_aside(context: Context, window: str) -> dict[str, int]:
    """What `babylon windows show` says was set aside, by reason; the report has their sum."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        story = window_rows.story(tx, name, window)
        (report,) = [each for each in window_rows.report(tx, name) if each.window_id == window]
    assert story is not None
    counts: dict[str, int] = story["set_aside"] or {}
    assert report.quarantined == sum(counts.values())
    return counts


def owners(context: Context) -> list[tuple[str, str | None]]:
    """Trajectory and lineage of each row, as a person reads the table."""
    rows = query(context, "SELECT trajectory_id, model_name FROM rl.quarantine ORDER BY 1, 2")
    return [(row["trajectory_id"], row["model_name"]) for row in rows]


@pytest.mark.parametrize("strict_first", [True, False])
def test_each_lineage_sets_aside_what_it_cannot_read(
    strict: Context, lenient: Context, strict_first: bool
) -> None:
    window, large, broken = window_with_bad_traces(strict)
    pipeline.produce(strict)
    pipeline.produce(lenient)
    both = [strict, lenient] if strict_first else [lenient, strict]
    for context in [*both, *both]:
        score_again(context, window, pipeline.score)
    assert set_aside(strict, window) == {"bad_json": 1, "too_large": 1}
    assert set_aside(lenient, window) == {"bad_json": 1}
    name = strict.lineage.name
    assert owners(strict) == [(large, name), (broken, name), (broken, "lenient")]


def test_a_mended_trace_leaves_quarantine_for_the_lineage_that_reads_it(
    strict: Context, lenient: Context
) -> None:
    window, large, broken = window_with_bad_traces(strict)
    for context in (strict, lenient):
        pipeline.produce(context)
        assert pipeline.score(context) == [window]
    query(
        strict,
        'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1',
        steps(1),
        broken,
    )
    score_again(lenient, window, pipeline.score)
    assert owners(strict) == [(large, strict.lineage.name), (broken, strict.lineage.name)]
    score_again(strict, window, pipeline.score)
    assert owners(strict) == [(large, strict.lineage.name)]


def test_workers_of_the_old_release_go_on_beside_new_ones(
    strict: Context, lenient: Context, old_worker: Callable[[Context], list[str]]
) -> None:
    window, large, broken = window_with_bad_traces(strict)
    pipeline.produce(strict)
    pipeline.produce(lenient)
    assert pipeline.score(lenient) == [window]
    assert old_worker(strict) == [window]
    score_again(strict, window, old_worker)  # the conflict that it names is found
    assert owners(strict) == [(large, None), (broken, "lenient"), (broken, None)]
    # A row without a lineage is that of the old worker's lineage, and of no other.
    assert set_aside(strict, window) == {"bad_json": 1, "too_large": 1}
    assert set_aside(lenient, window) == {"bad_json": 1}
    assert query(strict, OLD_REPORT, "lenient") == [{"quarantined": 3}]  # as wrong as ever
    score_again(lenient, window, pipeline.score)
    assert set_aside(strict, window) == {"bad_json": 1, "too_large": 1}
    # The new release takes over a window, and the old one takes it back.
    score_again(strict, window, pipeline.score)
    assert [lineage for _, lineage in owners(strict) if lineage is None] == []
    assert set_aside(strict, window) == {"bad_json": 1, "too_large": 1}
    score_again(strict, window, old_worker)
    assert set_aside(strict, window) == {"bad_json": 1, "too_large": 1}


@pytest.fixture
def before_the_migration(
    fresh_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database that lacks this migration."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for migration in load_migrations():
        if migration.name < MIGRATION:
            shutil.copy(migrations_folder() / f"{migration.name}.sql", folder)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "migrations_folder", lambda: folder)
        migrate(fresh_database)
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        yield connection


def test_rows_of_before_the_migration_are_kept_for_each_lineage_that_scored_their_window(
    before_the_migration: psycopg.Connection[Any], settings: Settings, fresh_database: str
) -> None:
    windows = [hours_ago(hours) for hours in (4, 3, 2)]
    before_the_migration.execute(
        """INSERT INTO rl.windows (window_id, model_name, state, scored_at)
           VALUES (%(first)s, 'a', 'scored', '2025-01-01'), (%(first)s, 'b', 'due', '2025-01-02'),
                  (%(first)s, 'c', 'due', NULL), (%(second)s, 'a', 'skipped', '2025-01-03')""",
        {"first": windows[0], "second": windows[1]},
    )
    for number, window in enumerate(windows):
        before_the_migration.execute(
            OLD_QUARANTINE,
            {
                "window_id": window,
                "trajectory_ids": [f"t-{number}-1", f"t-{number}-2"],
                "reasons": ["bad_json", "too_large"],
                "details": ["d1", "d2"],
            },
        )
    every = "SELECT DISTINCT trajectory_id, window_id, reason, detail, at FROM rl.quarantine"
    rows = sorted(before_the_migration.execute(every).fetchall())
    migrate(fresh_database)
    text = (migrations_folder() / f"{MIGRATION}.sql").read_bytes()
    for _ in range(2):
        assert sorted(before_the_migration.execute(every).fetchall()) == rows
        owned = before_the_migration.execute(
            "SELECT trajectory_id, model_name FROM rl.quarantine ORDER BY 1, 2"
        ).fetchall()
        assert owned == [
            ("t-0-1", "a"), ("t-0-1", "b"), ("t-0-2", "a"), ("t-0-2", "b"),
            ("t-1-1", "a"), ("t-1-2", "a"),
            ("t-2-1", None), ("t-2-2", None),
        ]  # fmt: skip
        before_the_migration.execute(text)  # as psql -f runs it again
    url = {"database_url": fresh_database}
    for name, counts in {"a": {"bad_json": 1, "too_large": 1}, "c": {}}.items():
        changed = Settings(**{**settings.model_dump(), **url, "model_name": name})
        context = Context.of_deployment(changed, "test:1")
        assert set_aside(context, windows[0]) == counts
        context.database.close()


def test_the_rows_of_an_old_worker_stay_as_they_are_if_the_migration_runs_again(
    strict: Context, lenient: Context, old_worker: Callable[[Context], list[str]]
) -> None:
    window, _, _ = window_with_bad_traces(strict)
    for context in (strict, lenient):
        pipeline.produce(context)
        assert (old_worker if context is strict else pipeline.score)(context) == [window]
    before = owners(strict)
    text = (migrations_folder() / f"{MIGRATION}.sql").read_bytes()
    with psycopg.connect(strict.settings.postgres(), autocommit=True) as connection:
        connection.execute(text)
    assert owners(strict) == before
