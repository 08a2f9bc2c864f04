"""The endpoint as a process: real Postgres, a real model, versions trained here, real clients."""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")
pytest.importorskip("openai")

from babylon_tasks.serving import promote
from babylon_tasks.work.context import Context
from tests.endpoint import (
    FOLLOW_SECONDS,
    MESSAGES,
    ask,
    client_of,
    endpoint,
    pestered,
    problems,
    within,
)
from tests.outage import Outage
from tests.rows import commit_steps, one, query
from tests.unit.tiny import make_tiny_model
from tests.vllm_server import serving as vllm
from workers.trainer.torch.trainer import TorchTrainer


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def trained(make_context: Callable[..., Context], base_model: str) -> Context:
    """A lineage with three real steps, of which the newest is promoted."""
    context = make_context(
        trainer="torch", base_model=base_model, learning_rate=0.02, max_policy_change=None
    )
    commit_steps(context, TorchTrainer("cpu-0"), 3)
    return context


@pytest.mark.slow
def test_every_version_answers_as_itself_and_is_remembered(trained: Context) -> None:
    with endpoint(trained) as url:
        names = [each.id for each in client_of(url).models.list()]
        assert names[:3] == ["babylon-agent", "babylon-agent@3", "babylon-agent-v1.0.2"]
        texts = {}
        for name in names:
            raw = client_of(url).chat.completions.with_raw_response.create(
                model=name, messages=MESSAGES, max_tokens=12, temperature=0
            )
            answer = raw.parse()
            version = raw.headers["x-babylon-version"]
            assert (name in (answer.model, version)) == (name != "babylon-agent")
            text = answer.choices[0].message.content
            assert texts.setdefault(answer.model, text) == text
        assert len(texts) == 4  # three steps and the base model
        assert len(set(texts.values())) > 1

        parts = list(ask(url, stream=True))
        assert {part.model for part in parts} == {"babylon-agent@3"}
        said = "".join(part.choices[0].delta.content or "" for part in parts)
        assert said == texts["babylon-agent@3"]

        remembered(trained, url)
        commit_steps(trained, TorchTrainer("cpu-0"), 1)
        within(10, lambda: ask(url).model == "babylon-agent@4")


@pytest.mark.slow
def test_promotions_are_followed_and_nobody_notices(trained: Context) -> None:
    """By hand, by the app, and with Postgres away in between."""
    with endpoint(trained) as url, pestered(url) as client:
        promote.roll_back(trained, "1", "it lost money")
        within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@1")
        promote.promote(trained, "2", "it did not")
        within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@2")
        query(  # as the app's page does it
            trained,
            """UPDATE trained_models SET status = 'deployed', "agentsUsing" = 5,
                      "deployedAt" = now() WHERE version = 'v1.0.2' RETURNING 1""",
        )
        within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@3")

        outage = Outage(trained, None)
        outage.begin()
        within(10, lambda: problems(url))
        assert problems(url) == ["Postgres"]
        assert httpx.get(f"{url}/health/ready").status_code == 200
        assert ask(url).model == "babylon-agent@3"
        outage.end()
        promote.roll_back(trained, None, "and again")
        within(FOLLOW_SECONDS + 5, lambda: ask(url).model == "babylon-agent@2")
    assert client.seen == [f"babylon-agent@{step}" for step in (3, 1, 2, 3, 2)]


def remembered(trained: Context, url: str) -> None:
    """An answer's tokens, its version and its agent are rows, and the app's counter moves."""
    answer = ask(url, user="agent-7", logprobs=True)
    told = [each.logprob for each in answer.choices[0].logprobs.content]
    of_agent = "FROM rl.calls WHERE agent = 'agent-7'"
    within(10, lambda: query(trained, f"SELECT 1 AS x {of_agent}"))
    call = one(trained, f"SELECT * {of_agent}")
    assert (call["model_name"], call["step"], call["backend"]) == ("babylon-agent", 3, "embedded")
    assert len(call["token_ids"]) == len(call["logprobs"]) == answer.usage.completion_tokens
    assert call["logprobs"][: len(told)] == pytest.approx(told, abs=1e-5)
    assigned = "SELECT step, answers FROM rl.assignments WHERE agent = 'agent-7'"
    within(10, lambda: query(trained, assigned) == [{"step": 3, "answers": 1}])
    counted = """SELECT 1 AS x FROM trained_models
                  WHERE version = 'v1.0.2' AND "totalInferences" > 0"""
    within(15, lambda: query(trained, counted))


@pytest.mark.slow
def test_two_vllm_servers_of_which_one_dies_and_comes_back(trained: Context) -> None:
    """Servers of vLLM's protocol: tests/vllm has the real one."""
    root = trained.settings.base_model
    with vllm(root=root) as one_server, vllm(root=root) as other:
        servers = (one_server, other)
        urls = ",".join(server.url for server in servers)
        with endpoint(trained, VLLM_URLS=urls) as url, pestered(url) as client:
            within(10, lambda: all(len(server.state.loaded) == 1 for server in servers))
            one_server.die()
            within(10, lambda: problems(url))
            promote.roll_back(trained, "1", "with one server alone")
            within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@1")
            one_server.start()
            within(10, lambda: not problems(url) and one_server.state.loaded)
            promote.promote(trained, "2", "with both")
            within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@2")
            one_server.state.answers_as_base = True  # so the proof of another one fails
            promote.promote(trained, "3", "with the other alone")
            within(FOLLOW_SECONDS, lambda: ask(url).model == "babylon-agent@3")
            within(5, lambda: problems(url))
            (problem,) = problems(url)
            assert problem.startswith("babylon-agent@3 on ")
            names = {name for server in servers for name in server.state.loaded}
            assert all(name.count("/") == 1 for name in names), names
    assert client.seen == [f"babylon-agent@{step}" for step in (3, 1, 2, 3)]
