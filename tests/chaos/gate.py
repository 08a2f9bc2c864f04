"""What must hold where a step serves only after its exam, by the rows and the files of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from babylon_tasks.work.context import Context
from tests.chaos.inject.opinions import MARK
from tests.rows import query

# By an experiment alone: others end by a person, or when the lineage gets another PUBLISH.
_DECIDED = {"promoted": "promoted", "rolled_back": "rolled back", "undecided": "undecided"}


def broken(context: Context) -> list[str]:
    """List what is wrong; what the next sweep has to end is given the time of a recovery."""
    settings = context.settings
    deadline = time.monotonic() + 2 * settings.lease_seconds + 2 * settings.sweep_seconds
    while (left := list(_left(context))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [*left, *_promoted(context), *_failed(context), *_experiments(context)]


def _left(context: Context) -> Iterator[str]:
    """Yield exams that nobody ends, and experiments and shares of steps that may not answer."""
    for row in query(
        context,
        """SELECT e.* FROM rl.exams e
            WHERE e.state = 'open' AND e.attempts > 0
              AND NOT EXISTS (SELECT FROM rl.leases l
                               WHERE l.resource = 'model/' || e.model_name
                                 AND l.expires_at > rl.clock_timestamp())
              AND EXISTS (SELECT FROM rl.windows w
                           WHERE w.model_name = e.model_name AND w.state = 'scored')""",
    ):
        yield f"{row['model_name']}: the exam of step {row['step']} is open, and nobody is at it"
    for row in query(
        context,
        """SELECT e.model_name, e.step
             FROM rl.experiments e JOIN rl.steps s USING (model_name, step)
            WHERE e.ended_at IS NULL AND s.given_up_at IS NOT NULL""",
    ):
        yield f"{row['model_name']}: an experiment runs with step {row['step']}, which is given up"
    for row in query(
        context,
        """SELECT s.model_name, s.draw
             FROM (SELECT *, lead(starts_at) OVER (PARTITION BY model_name ORDER BY starts_at)
                             AS ends_at FROM rl.shares) s
             JOIN rl.experiments e ON s.draw = 'experiment-' || e.id
            WHERE s.percent > 0 AND (s.ends_at IS NULL OR s.ends_at > rl.clock_timestamp())
              AND e.ended_at IS NOT NULL""",
    ):
        yield f"{row['model_name']}: agents are drawn for {row['draw']}, which has ended"


def _promoted(context: Context) -> Iterator[str]:
    """Yield steps that came to serve by themselves without an exam, and bad ones that served."""
    for row in query(
        context,
        """SELECT p.model_name, p.to_step, e.state FROM rl.promotions p
             JOIN rl.heads h USING (model_name)
             LEFT JOIN rl.exams e ON e.model_name = p.model_name AND e.step = p.to_step
            WHERE h.gated AND p.kind = 'automatic' AND e.state IS DISTINCT FROM 'passed'""",
    ):
        yield (
            f"{row['model_name']}: step {row['to_step']} came to serve, and its exam is "
            f"{row['state'] or 'missing'}"
        )
    for row in query(
        context,
        """SELECT h.model_name, h.published_step FROM rl.heads h
             JOIN rl.steps s ON s.model_name = h.model_name AND s.step = h.published_step
            WHERE h.gated AND s.given_up_at IS NOT NULL""",
    ):
        yield f"{row['model_name']}: step {row['published_step']} serves, and was given up"
    for row in query(
        context,
        """SELECT p.model_name, p.kind, s.step, s.checkpoint FROM rl.promotions p
             JOIN rl.steps s ON s.model_name = p.model_name AND s.step = p.to_step""",
    ):
        if row["checkpoint"] and (Path(row["checkpoint"]) / MARK).exists():
            yield f"{row['model_name']}: step {row['step']} is bad, and served ({row['kind']})"


def _failed(context: Context) -> Iterator[str]:
    """Yield failed steps that something continues, and steps that continue an unexamined one."""
    for row in query(
        context,
        """SELECT e.model_name, e.step FROM rl.exams e JOIN rl.steps s USING (model_name, step)
            WHERE e.state = 'failed' AND s.given_up_at IS NULL""",
    ):
        yield f"{row['model_name']}: step {row['step']} failed its exam, and is not given up"
    for row in query(
        context,
        """SELECT s.model_name, s.step, p.step AS parent, e.state
             FROM rl.steps s
             JOIN rl.heads h ON h.model_name = s.model_name AND h.gated
             JOIN rl.steps p ON p.model_name = s.model_name AND p.step = s.parent_step
             LEFT JOIN rl.exams e ON e.model_name = p.model_name AND e.step = p.step
            WHERE e.state IS DISTINCT FROM 'passed'
              AND NOT EXISTS (SELECT FROM rl.promotions r
                               WHERE r.model_name = p.model_name AND r.to_step = p.step)""",
    ):
        yield (
            f"{row['model_name']}: step {row['step']} continues step {row['parent']}, whose exam "
            f"is {row['state'] or 'missing'}"
        )


def _experiments(context: Context) -> Iterator[str]:
    """Yield experiments without the look that ended them, and those whose end was not followed."""
    running = query(
        context,
        """SELECT model_name FROM rl.experiments WHERE state = 'running'
            GROUP BY model_name HAVING count(*) > 1""",
    )
    yield from (f"{row['model_name']}: more than one experiment runs" for row in running)
    for row in query(
        context,
        """SELECT e.*, ARRAY(SELECT k.decision FROM rl.experiment_looks k
                              WHERE k.experiment_id = e.id ORDER BY k.window_id) AS decisions,
                  (SELECT count(*) FROM rl.promotions p
                    WHERE p.model_name = e.model_name AND p.to_step = e.step
                      AND p.why = e.reason AND p.kind = 'automatic') AS promotions
             FROM rl.experiments e WHERE e.ended_at IS NOT NULL""",
    ):
        which = f"{row['model_name']}: the experiment with step {row['step']}"
        decision = _DECIDED.get(row["state"])
        if decision and row["decisions"].count(decision) != 1:
            yield f"{which} is {row['state']}, and its looks decided {row['decisions']}"
        if row["promotions"] != (row["state"] == "promoted"):
            yield f"{which} is {row['state']}, and promoted {row['promotions']} times"
