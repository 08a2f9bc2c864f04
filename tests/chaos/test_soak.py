"""Fault 23: hours of windows in minutes, and something killed all the time."""

from __future__ import annotations

import pytest

from tests.chaos.bare import run_bare
from tests.chaos.ledger import Ledger
from tests.chaos.soak import run_soak
from tests.chaos.world import World

WINDOWS_A_SECOND = 0.7  # each of which is due for six lineages
BARE_TASKS_A_SECOND = 100  # two workers manage more, so that nothing is left waiting


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_soak(world: World, ledger: Ledger, pytestconfig: pytest.Config) -> None:
    """Every window trains each lineage, and once on the way to its head."""
    seconds, seed = pytestconfig.getoption("seconds"), pytestconfig.getoption("seed")
    windows = int(seconds * WINDOWS_A_SECOND)
    report = run_soak(world, seconds, seed, windows)
    ledger.add(
        23,
        f"soak, {windows} windows, {report.lineages} lineages",
        report.lost,
        report.twice,
        world.recoveries(),
    )
    kills = ", ".join(f"{count} {victim}" for victim, count in sorted(report.kills.items()))
    ended = ", ".join(f"{count} {outcome}" for outcome, count in report.attempts.items())
    ledger.below += [
        f"Soak: {windows} windows for each of {report.lineages} lineages in {seconds:.0f} s "
        f"(seed {seed}), {sum(report.kills.values())} kills: {kills}. One lineage was forked, and "
        f"then reset to before the fork, which gave up {report.given_up} steps.",
        f"Attempts: {ended}. All done {report.drain_seconds:.0f} s after the last window came.",
    ]
    assert (report.lost, report.twice, report.broken) == (0, 0, [])
    assert report.lineages == 6
    assert report.given_up > 0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_bare_celery(world: World, ledger: Ledger, pytestconfig: pytest.Config) -> None:
    """For comparison: nothing is asserted about what is not ours, but that it ran."""
    seconds, seed = pytestconfig.getoption("seconds"), pytestconfig.getoption("seed")
    report = run_bare(world, int(seconds * BARE_TASKS_A_SECOND), seconds, seed)
    ledger.below.append(
        f"Bare Celery, the same schedule of kills, all of them on its workers: {report.tasks} "
        f"tasks, {report.kills} kills, {report.never} never ran, "
        f"{report.twice} ran more than once."
    )
    assert report.tasks > 0
