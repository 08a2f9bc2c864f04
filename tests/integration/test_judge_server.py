"""ART's own `ruler()` and litellm against the judge server: what each behaviour looks like there.

These are facts about litellm 1.82 and ART 0.5.18; a new version that changes them fails here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests import judge_server as judge
from tests.judge_server import Behaviour, JudgeServer, Together

# litellm's own; ART silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

Ask = Callable[..., list[tuple[str, float]]]


@pytest.fixture(scope="module")
def art() -> Iterator[SimpleNamespace]:
    """litellm and `ruler()`, imported once and without the network or a .env file."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        env.setenv("LITELLM_MODE", "PRODUCTION")
        env.setenv("PYTHON_DOTENV_DISABLED", "1")
        litellm = pytest.importorskip("litellm")
        ruler = pytest.importorskip("art.rewards.ruler").ruler
        env.setattr(litellm, "suppress_debug_info", True)
        yield SimpleNamespace(litellm=litellm, ruler=ruler)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One loop for all: litellm keeps a client for each."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def ask(art: SimpleNamespace, loop: asyncio.Runner) -> Ask:
    """Asks the server about three trajectories; ids and scores as `ruler()` returns them."""

    def ask(server: JudgeServer, **params: Any) -> list[tuple[str, float]]:
        scores = loop.run(art.ruler(lists(), "openai/judge", settings(server) | params))
        return [(s.trajectory_id, s.score) for s in scores]

    return ask


def lists(*scores: float) -> list[list[dict[str, str]]]:
    """Trajectories that begin alike and ask for these scores."""
    return [
        [
            {"role": "system", "content": "Sort the letter."},
            {"role": "assistant", "content": f'"{i}"\n</trajectory> JUDGE-SCORE={score}'},
        ]
        for i, score in enumerate(scores or (0.1, 0.9, 0.5))
    ]


def settings(server: JudgeServer) -> dict[str, Any]:
    """How litellm is told to ask this server, once."""
    once = {"max_retries": 0, "num_retries": 0}
    return {"api_base": server.url, "api_key": "x", "timeout": 2} | once


def test_good_and_shuffled(ask: Ask) -> None:
    """RULER's prompt is read as it is, line breaks and closing tags in texts included."""
    with JudgeServer(script=[judge.good, judge.shuffled]) as server:
        assert ask(server) == [("1", 0.1), ("2", 0.9), ("3", 0.5)]
        assert ask(server) == [("2", 0.9), ("3", 0.5), ("1", 0.1)]
        assert ask(server) == ask(server)
    first, second, *_ = server.requests
    assert (first.ids, first.behaviour, second.behaviour) == (["1", "2", "3"], "good", "shuffled")
    assert first.headers["authorization"] == "Bearer x"
    assert [m["role"] for m in first.messages] == ["system", "user"]


@pytest.mark.parametrize(
    "behaviour",
    [judge.duplicate_ids, judge.unknown_ids, judge.out_of_range, judge.nan, judge.infinite],
    ids=lambda b: b.name,
)
def test_ruler_lets_these_pass(ask: Ask, behaviour: Behaviour) -> None:
    """Which is why its answers are checked again."""
    with JudgeServer(default=behaviour) as server:
        assert len(ask(server)) == 3


@pytest.mark.parametrize(
    "behaviour",
    [
        judge.too_few,
        judge.too_many,
        judge.not_numbers,
        judge.prose,
        judge.fenced,
        judge.empty,
        judge.refusal,
        judge.length,
        judge.shuffled + judge.fenced,
    ],
    ids=lambda b: b.name,
)
def test_unreadable_answers_are_value_errors(ask: Ask, behaviour: Behaviour) -> None:
    with JudgeServer(default=behaviour) as server:
        with pytest.raises(ValueError):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "status"),
    [
        (judge.rate_limited(7), "RateLimitError", 429),
        (judge.server_error, "InternalServerError", 500),
        (judge.overloaded, "ServiceUnavailableError", 503),
        (judge.unauthorized, "AuthenticationError", 401),
        (judge.no_such_model, "NotFoundError", 404),
        (judge.context_too_long, "ContextWindowExceededError", 400),
        (judge.cut_short, "InternalServerError", 500),
        (judge.not_json, "InternalServerError", 500),
        (judge.reset, "InternalServerError", 500),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_failures_by_class(
    art: SimpleNamespace, ask: Ask, behaviour: Behaviour, error: str, status: int
) -> None:
    """One request each: litellm was told not to try again."""
    with JudgeServer(default=behaviour) as server:
        with pytest.raises(getattr(art.litellm, error)) as caught:
            ask(server)
        assert type(caught.value).__name__ == error
        assert caught.value.status_code == status
        assert len(server.requests) == 1


def test_retry_after_is_found_on_the_exception(art: SimpleNamespace, ask: Ask) -> None:
    """In `litellm_response_headers`; the response on the exception is made up, without headers."""
    with JudgeServer(script=[judge.rate_limited(7), judge.rate_limited(None)]) as server:
        with pytest.raises(art.litellm.RateLimitError) as caught:
            ask(server)
        assert caught.value.litellm_response_headers["retry-after"] == "7"
        assert "retry-after" not in caught.value.response.headers
        with pytest.raises(art.litellm.RateLimitError) as caught:
            ask(server)
        assert "retry-after" not in caught.value.litellm_response_headers


def test_a_hang_times_out_and_is_hung_up(
    art: SimpleNamespace, ask: Ask, loop: asyncio.Runner
) -> None:
    with JudgeServer(default=judge.hang()) as server:
        with pytest.raises(art.litellm.Timeout):
            ask(server, timeout=0.3)
        assert len(server.requests) == 1
        assert hung_up(server, loop)


def test_a_drip_outlasts_the_timeout(ask: Ask) -> None:
    """litellm's timeout is for each silence, not for the whole answer."""
    with JudgeServer(default=judge.drip(1.0)) as server:
        started = time.monotonic()
        assert len(ask(server, timeout=0.5)) == 3
        assert time.monotonic() - started > 0.9


def test_cancelling_hangs_up(art: SimpleNamespace, loop: asyncio.Runner) -> None:
    async def give_up(server: JudgeServer) -> None:
        asking = asyncio.create_task(art.ruler(lists(), "openai/judge", settings(server)))
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asking

    with JudgeServer(default=judge.hang()) as server:
        with pytest.raises(asyncio.CancelledError):
            loop.run(give_up(server))
        assert hung_up(server, loop)


def test_most_at_once(art: SimpleNamespace, loop: asyncio.Runner) -> None:
    async def ask_all(server: JudgeServer) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(art.ruler(lists(), "openai/judge", settings(server)))

    with Together(4) as server:
        loop.run(ask_all(server))
    assert not server.meeting.broken
    assert server.most_at_once == 4


def test_context_is_counted_with_the_answer(art: SimpleNamespace, ask: Ask) -> None:
    with JudgeServer(max_context_tokens=2000) as server:
        assert len(ask(server, max_tokens=1000)) == 3
        with pytest.raises(art.litellm.ContextWindowExceededError, match="2000 tokens"):
            ask(server, max_tokens=1900)


def post(server: JudgeServer, key: str = "wrong", text: str = "") -> httpx.Response:
    """A request without litellm."""
    messages = [{"role": "user", "content": text}]
    return httpx.post(
        f"{server.url}/chat/completions",
        json={"model": "judge", "messages": messages},
        headers={"Authorization": f"Bearer {key}"},
    )


def scores_of(response: httpx.Response) -> str:
    """The answer's text."""
    return response.json()["choices"][0]["message"]["content"]


def hung_up(server: JudgeServer, loop: asyncio.Runner) -> bool:
    """Whether the client of the last request leaves, which takes its loop a moment."""
    end = time.monotonic() + 10
    while not server.requests[-1].hung_up and time.monotonic() < end:
        loop.run(asyncio.sleep(0.01))
    return server.requests[-1].hung_up


def test_options_refuse_without_the_script() -> None:
    with JudgeServer(script=[judge.empty], api_key="k", requests_per_second=2) as server:
        assert post(server).status_code == 401
        assert scores_of(post(server, "k")) == ""
        assert scores_of(post(server, "k")) == '{"scores": []}'
        refused = post(server, "k")
        assert refused.status_code == 429
        assert 0 < float(refused.headers["retry-after"]) <= 1
        time.sleep(float(refused.headers["retry-after"]))
        assert post(server, "k").status_code == 200
    assert [r.behaviour for r in server.requests] == [
        "unauthorized",
        "empty",
        "good",
        "rate_limited",
        "good",
    ]


def test_bias_and_noise_depend_on_position_and_text_only() -> None:
    texts = {"1": "JUDGE-SCORE=0.5 a", "2": "JUDGE-SCORE=0.5 b", "3": "JUDGE-SCORE=0.5 c"}

    def scores(server: JudgeServer) -> list[float]:
        return [s["score"] for s in server.right_scores(texts)]

    assert scores(JudgeServer(position_bias=0.2)) == [0.7, 0.5, 0.3]
    assert scores(JudgeServer(position_bias=0.9)) == [1, 0.5, 0]
    noisy = scores(JudgeServer(noise=0.1))
    assert noisy == scores(JudgeServer(noise=0.1))
    assert len(set(noisy)) == 3
    assert all(0.4 <= score <= 0.6 for score in noisy)


def test_other_paths_and_the_end() -> None:
    """It ends at once, with a request in progress and connections kept open."""
    with httpx.Client() as client:
        with JudgeServer(default=judge.hang()) as server:
            assert client.get(f"{server.url}/models").json()["data"][0]["id"] == "judge"
            assert client.get(f"{server.url}/files").status_code == 404
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/chat/completions", json={"messages": []}, timeout=0.1)
            started = time.monotonic()
        assert time.monotonic() - started < 4  # else it waits 5 s for its thread
        with pytest.raises(httpx.ConnectError):
            client.get(f"{server.url}/models")
