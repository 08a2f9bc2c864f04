"""The endpoint in front of two real vLLM servers: promotions under load, and a server that dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babylon_tasks.serving import promote
from babylon_tasks.work.context import Context
from tests.endpoint import ask, endpoint, pestered, problems, within
from tests.rows import commit_steps, one, query
from tests.vllm.conftest import FLAGS
from tests.vllm.servers import START_SECONDS, VllmServer, vllm_servers
from workers.trainer.torch.trainer import TorchTrainer


@pytest.fixture(scope="module")
def servers(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[VllmServer]]:
    with vllm_servers(str(tiny_model), tmp_path_factory.mktemp("logs"), *FLAGS, count=2) as running:
        yield running


@pytest.fixture
def trained(make_context: Callable[..., Context], tiny_model: Path) -> Context:
    """A lineage with five real steps, of which the newest is promoted."""
    context = make_context(
        trainer="torch", base_model=str(tiny_model), learning_rate=0.005, max_policy_change=None
    )
    commit_steps(context, TorchTrainer("cpu-0"), 5)
    return context


def test_promotions_rollbacks_and_a_server_that_dies(
    trained: Context, servers: list[VllmServer]
) -> None:
    """Nobody notices; five versions pass through three slots.

    How soon they are followed is the benchmark's: two engines share this CPU with the test.
    """
    urls = ",".join(server.url for server in servers)
    with endpoint(trained, VLLM_URLS=urls, SERVE_ADAPTERS="3") as url, pestered(url) as client:
        expected = [5]

        def follow(step: int) -> None:
            within(60, lambda: ask(url).model == f"babylon-agent@{step}")
            expected.append(step)

        for step in (4, 1):
            promote.roll_back(trained, str(step), "a test")
            follow(step)
        for step in (2, 3, 4, 5):
            promote.promote(trained, str(step), "a test")
            follow(step)
        servers[0].kill()
        within(30, lambda: problems(url))
        promote.roll_back(trained, "2", "with one server alone")
        follow(2)
        servers[0].start()
        within(START_SECONDS, lambda: not problems(url))
        promote.promote(trained, "5", "with both")
        follow(5)
        commit_steps(trained, TorchTrainer("cpu-0"), 1)
        promote.resume(trained, "a test")
        commit_steps(trained, TorchTrainer("cpu-0"), 1)
        within(60, lambda: ask(url).model == "babylon-agent@7")
    assert client.seen[: len(expected)] == [f"babylon-agent@{step}" for step in expected]
    assert client.seen[-1] == "babylon-agent@7"
    captured = (
        "SELECT count(*) AS n FROM rl.calls WHERE backend = 'vllm' AND model_name = 'babylon-agent'"
    )
    assert one(trained, captured)["n"] > 0.9 * len(client.models)
    assert query(trained, "SELECT 1 AS x FROM rl.calls WHERE step = 7")
