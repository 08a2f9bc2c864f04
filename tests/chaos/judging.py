"""A world with a judge: its windows, the workers that ask it, and who does so now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from babylon_tasks.store import leases
from tests.chaos.injection import FOLDER
from tests.chaos.world import ROOT, World
from tests.judge_server import JudgeServer
from tests.judged import add_judged_window, marks
from tests.rows import query

Wanted = dict[str, dict[str, float]]  # window → trajectory id → the score that the judge gives it


def asking(judge: JudgeServer, **settings: str) -> dict[str, str]:
    """Return the environment of a worker that scores with this judge."""
    return {
        # What is measured is who takes over when, not the 5 to 10 s in which ART is imported.
        "BABYLON_PRELOAD": "art.rewards",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHON_DOTENV_DISABLED": "1",
        "PYTHONPATH": f"{FOLDER}:{ROOT}",
        "SCORING": "ruler",
        "JUDGE_MODEL": "openai/judge",
        "JUDGE_BASE_URL": judge.url,
        **settings,
    }


def add_windows(world: World, count: int) -> Wanted:
    """Add windows that the judge can tell apart; call this before any role looks for windows."""
    return {
        window: add_judged_window(
            world.context, window, [round(0.25 * agent + n / 1000, 3) for agent in (1, 2, 3)]
        )
        for n, window in enumerate(world.next_windows(count))
    }


def all_scores(wanted: Wanted) -> dict[str, float]:
    """Return the scores of all windows, by trajectory id."""
    return {each: score for scores in wanted.values() for each, score in scores.items()}


def questions(judge: JudgeServer, wanted: Wanted) -> Counter[str]:
    """Count the judge's questions about each window."""
    by_marks = {frozenset(scores.values()): window for window, scores in wanted.items()}
    return Counter(by_marks[frozenset(marks(request))] for request in list(judge.requests))


def who_judges(world: World, names: Sequence[str]) -> str | None:
    """Return the worker that holds the judge's lease."""
    held = query(
        world.context,
        "SELECT holder FROM rl.leases WHERE resource = %s AND expires_at > clock_timestamp()",
        _resource(world),
    )
    pids = {int(row["holder"].rpartition(":")[2]) for row in held}
    return next((name for name in names if pids & set(world.fleet.children(name))), None)


@contextmanager
def nobody_judges(world: World, processes: Mapping[str, int]) -> Iterator[None]:
    """Hold the judge's lease until each worker started in the body has so many processes."""
    with world.context.database.transaction() as tx:
        lease = leases.acquire(tx, _resource(world), world.context.holder, 600)
    assert lease is not None
    yield
    world.wait(
        lambda: all(len(world.fleet.children(name)) >= n for name, n in processes.items()), 60
    )
    with world.context.database.transaction() as tx:
        leases.release(tx, [lease])


def _resource(world: World) -> str:
    return f"judge/{world.settings.model_name}"
