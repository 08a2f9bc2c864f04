"""A judge over local HTTP, asked through litellm and ART's ruler; and workers that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from babylon_tasks.scoring.judge import client as asking
from babylon_tasks.scoring.judge import dialect, ruler_call
from babylon_tasks.settings import Settings
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from tests.judge_server import JudgeServer


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """The judge, of which this process knows nothing yet, although its port may be a known one."""
    dialect._dialect.cache_clear()
    with JudgeServer() as running:
        yield running


@pytest.fixture(scope="session")
def litellm_is_warm() -> None:
    """Its first call takes seconds, which no short timeout of a test should see."""
    if find_spec("art") is None:
        pytest.skip("ART is not installed")
    with JudgeServer() as server:
        settings = Settings(judge_model="openai/judge", judge_base_url=server.url)
        aio.run(ruler_call.ask_ruler(["a", "b"], "", "", settings, None, 500))


@pytest.fixture
def make_judged(
    make_context: Callable[..., Context],
    server: JudgeServer,
    litellm_is_warm: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Context]:
    """Workers that score by RULER, ask `server`, and wait little before they ask again."""
    monkeypatch.setattr(asking, "_FIRST_WAIT_SECONDS", 0.01)

    def make(**changes: Any) -> Context:
        return make_context(
            **{
                "scoring": "ruler",
                "judge_model": "openai/judge",
                "judge_base_url": server.url,
                "judge_timeout_seconds": 20.0,  # a loaded machine is not a judge that hangs
                "judge_input_usd_per_million": 1.0,
                "judge_output_usd_per_million": 10.0,
                **changes,
            }
        )

    return make


class Died(BaseException):
    """Nothing after it is run, as after SIGKILL: `dying` takes the clean-up away too."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Died` leaves leases, attempts, jobs and files as they are."""
    leave = LeaseKeeper.__exit__

    def forget(keeper: Any, exc_type: Any, exc: Any, traceback: Any) -> None:
        if exc_type is not Died:
            leave(keeper, exc_type, exc, traceback)

    monkeypatch.setattr("babylon_tasks.work.leases.LeaseKeeper.__exit__", forget)
