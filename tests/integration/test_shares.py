"""What the endpoint reads of each lineage, and shares by hand."""

from __future__ import annotations

from babylon_tasks.records.shares import Share, share_at
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import heads, serving
from babylon_tasks.store.database import now
from babylon_tasks.store.serving import ServingRow
from babylon_tasks.training.reset import reset
from babylon_tasks.work.context import Context
from tests.rows import commit_steps, one, query


def row_of(context: Context, name: str) -> ServingRow:
    with context.database.transaction() as tx:
        return next(row for row in serving.serving_rows(tx) if row.name == name)


def test_the_endpoint_sees_every_lineage_that_is_not_retired(
    context: Context, trainer: Trainer
) -> None:
    name = context.lineage.name
    commit_steps(context, trainer, 2)
    query(
        context,
        """INSERT INTO rl.lineages (name, base_model, forked_from, forked_step, created_by, state)
           VALUES ('fork', 'base', %(n)s, 1, 'me', 'paused'), ('gone', 'base', NULL, NULL, 'me',
                   'retired')
           RETURNING 1""".replace("%(n)s", f"'{name}'"),
    )
    query(context, "INSERT INTO rl.heads (model_name, base_model) VALUES ('old', 'b') RETURNING 1")
    with context.database.transaction() as tx:
        rows = {row.name: row for row in serving.serving_rows(tx)}
        assert set(rows) == {name, "fork", "old"}
        inherited = serving.steps_to_serve(tx, "fork")
        own = serving.steps_to_serve(tx, name)
    assert (rows[name].step, rows[name].published_step, rows[name].shares) == (2, 2, ())
    assert (rows["old"].base_model, rows["old"].published_step) == ("b", 0)
    assert [(s.model_name, s.step, s.version) for s in inherited] == [(name, 1, "v1.0.0")]
    assert [s.step for s in own] == [1, 2]
    assert (
        own[0].checkpoint == one(context, "SELECT checkpoint FROM rl.steps LIMIT 1")["checkpoint"]
    )


def test_the_endpoint_sees_when_steps_came_or_lost_their_files(
    context: Context, trainer: Trainer
) -> None:
    name = context.lineage.name
    with context.database.transaction() as tx:
        heads.ensure(tx, context.lineage)
    seen = [row_of(context, name).steps_seen]
    commit_steps(context, trainer, 1)
    query(
        context,
        f"""INSERT INTO rl.lineages (name, base_model, forked_from, forked_step, created_by)
            VALUES ('fork', 'base', '{name}', 1, 'me') RETURNING 1""",
    )
    fork = row_of(context, "fork").steps_seen
    seen.append(row_of(context, name).steps_seen)
    query(context, "UPDATE rl.steps SET removed_at = now() RETURNING 1")
    seen.append(row_of(context, name).steps_seen)
    assert len(set(seen)) == 3
    assert row_of(context, name).steps_seen == seen[-1]
    assert row_of(context, "fork").steps_seen != fork


def test_the_share_in_force_and_the_next_one_are_read(context: Context) -> None:
    query(context, "INSERT INTO rl.heads (model_name, base_model) VALUES ('m', 'b') RETURNING 1")
    query(
        context,
        """INSERT INTO rl.shares (model_name, starts_at, step, percent, holder, why, at)
           SELECT 'm', date_trunc('hour', now()) + make_interval(hours => h), 10 + h, 5.5, 'me', '',
                  now() FROM generate_series(-2, 2) h RETURNING 1""",
    )
    row = row_of(context, "m")
    assert [share.step for share in row.shares] == [10, 11]
    first, following = row.shares
    assert first.percent == 5.5
    assert share_at(row.shares, first.starts_at) == first
    assert share_at(row.shares, following.starts_at) == following
    assert isinstance(following, Share)


def test_a_reset_ends_the_shares_of_steps_that_it_gives_up(
    context: Context, trainer: Trainer
) -> None:
    """At once: what is in force, and what is to start. Others stay."""
    commit_steps(context, trainer, 4)
    query(
        context,
        """INSERT INTO rl.shares (model_name, starts_at, step, percent, holder, why, at)
           VALUES ('babylon-agent', rl.now() - interval '2 hours', 1, 10, 'me', 'x', rl.now()),
                  ('babylon-agent', rl.now() - interval '1 minute', 3, 20, 'me', 'x', rl.now()),
                  ('babylon-agent', rl.now() + interval '1 hour', 4, 30, 'me', 'x', rl.now()),
                  ('babylon-agent', rl.now() + interval '2 hours', 1, 40, 'me', 'x', rl.now())
           RETURNING 1""",
    )
    reset(context, "2", "a broken feed")
    rows = query(context, "SELECT step, percent::int, why FROM rl.shares ORDER BY starts_at")
    assert [(row["step"], row["percent"]) for row in rows] == [
        (1, 10), (3, 20), (3, 0), (4, 0), (1, 40),
    ]  # fmt: skip
    assert rows[2]["why"] == "reset: a broken feed"
    with context.database.transaction() as tx:
        assert share_at(row_of(context, context.lineage.name).shares, now(tx)) is None
