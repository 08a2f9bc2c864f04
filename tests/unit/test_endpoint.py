"""Decisions from an OpenAI-compatible endpoint: what is asked, what is read, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.steps import Logprobs
from babylon_tasks.simulation.game import endpoint
from babylon_tasks.simulation.game.endpoint import AT_ONCE, Endpoint
from babylon_tasks.simulation.game.hour import Answer, Question
from tests.openai_server import Reply, Stub, completion, serving

KEY = "sk-never-shown"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(endpoint, "_WAIT_SECONDS", 0.001)
    with serving() as made:
        yield made


def prompt(text: str = "decide") -> Question:
    return Question("agent-7", [{"role": "user", "content": text}])


def test_our_own_server_tells_the_version_and_the_tokens(stub: Stub) -> None:
    content = [
        {"token": "token_id:7", "logprob": -0.5, "bytes": [], "top_logprobs": []},
        {"token": "token_id:9", "logprob": -0.25},
    ]
    stub.reply = lambda body: (
        200,
        completion("BUY", system_fingerprint="step-3", logprobs={"content": content}),
    )
    (answer,) = Endpoint(stub.url, "agent")([prompt()])
    logprobs = Logprobs((7, 9), (-0.5, -0.25))
    assert answer == Answer("BUY", "agent@3", logprobs, "agent", "stop")
    assert stub.paths == {"/v1/chat/completions"}
    (body,) = stub.bodies
    assert (body["messages"], body["user"]) == (prompt().messages, "agent-7")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("agent", 1.0, 32)
    assert body["logprobs"] is body["return_tokens_as_token_ids"] is True


@pytest.mark.parametrize(
    ("model", "told", "version"),
    [
        ("agent", {"model": "agent@12"}, "agent@12"),
        ("agent@2", {"model": "agent@2"}, "agent@2"),
        ("agent-v1.0.2", {"model": "agent@3"}, "agent@3"),
        ("agent@2", {"model": "a-file.gguf"}, "agent@2"),
        ("agent", {"model": "agent", "system_fingerprint": "step-0"}, "agent@0"),  # release 0.1.0
        ("agent@2", {"system_fingerprint": "step-2"}, "agent@2"),
        ("agent@2", {"system_fingerprint": "fp_44709d6fcb"}, "agent@2"),  # vLLM, by its adapter
        ("agent", {"model": "agent", "system_fingerprint": "fp_44709d6fcb"}, None),
        ("agent", {"model": "agent@03", "system_fingerprint": "step-03"}, None),
        ("agent", {}, None),
    ],
)
def test_versions(stub: Stub, model: str, told: dict[str, str], version: str | None) -> None:
    stub.reply = lambda body: (200, completion("x", **told))
    (answer,) = Endpoint(f"{stub.url}/v1/", model)([prompt()])
    assert (answer.version, answer.model, answer.logprobs) == (version, model, None)


def test_our_endpoint_is_known_by_its_header(stub: Stub) -> None:
    (answer,) = Endpoint(stub.url, "agent")([prompt()])
    assert not answer.ours
    stub.headers = {"x-babylon-version": "agent-v1.0.12"}
    (answer,) = Endpoint(stub.url, "agent")([prompt()])
    assert answer.ours


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": None}, {"content": [{"token": "BUY", "logprob": -1.0}]}, 3,
     {"content": [{"token": "token_id:1", "logprob": 0.5}]}],
)  # fmt: skip
def test_log_probabilities_of_other_tokens_are_not_recorded(stub: Stub, logprobs: Any) -> None:
    stub.reply = lambda body: (200, completion(None, logprobs=logprobs, finish_reason="length"))
    (answer,) = Endpoint(stub.url, "agent")([prompt()])
    assert (answer.text, answer.logprobs, answer.finish_reason) == ("", None, "length")


def test_answers_come_in_the_order_of_their_prompts_several_at_once(stub: Stub) -> None:
    together = threading.Barrier(AT_ONCE, timeout=20)

    def reply(body: dict[str, Any]) -> Reply:
        together.wait()
        return 200, completion(body["messages"][0]["content"])

    stub.reply = reply
    asked = [str(n) for n in range(3 * AT_ONCE)]
    answers = Endpoint(stub.url, "agent")([prompt(text) for text in asked])
    assert [answer.text for answer in answers] == asked
    assert stub.most_at_once == AT_ONCE


def test_a_seed_gives_the_same_seeds_to_the_requests(stub: Stub) -> None:
    def seeds(seed: int) -> dict[str, int]:
        stub.bodies.clear()
        player = Endpoint(stub.url, "agent", seed=seed)
        for texts in (("a", "b"), ("c",)):
            player([prompt(text) for text in texts])
        return {body["messages"][0]["content"]: body["seed"] for body in stub.bodies}

    first = seeds(1)
    assert seeds(1) == first != seeds(2)
    assert len(set(first.values())) == 3


def test_a_server_that_knows_only_openais_fields_is_asked_without_ours(stub: Stub) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if "top_k" in body:
            return 400, {"error": {"message": "Unrecognized request argument supplied: top_k"}}
        return 200, completion("SELL")

    stub.reply = reply
    player = Endpoint(stub.url, "agent")
    assert [answer.text for answer in player([prompt()])] == ["SELL"]
    assert len(stub.bodies) == 2
    player([prompt()])
    assert len(stub.bodies) == 3  # it is known now


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(stub: Stub, status: int) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if len(stub.bodies) < 3:
            return status, "wait"
        return 200, completion("HOLD")

    stub.reply = reply
    assert [answer.text for answer in Endpoint(stub.url, "agent")([prompt()])] == ["HOLD"]


def test_a_server_that_stays_busy_is_given_up_in_one_line(stub: Stub) -> None:
    stub.reply = lambda body: (503, {"error": {"message": "no\nmodel is loaded"}})
    with pytest.raises(ServerUnavailable) as raised:
        Endpoint(stub.url, "agent")([prompt(str(n)) for n in range(30)])
    assert str(raised.value) == (
        "127.0.0.1 does not answer after 5 tries (HTTP 503: no model is loaded)"
    )
    assert len(stub.bodies) < 30 * 5  # the others are not asked to their end


def test_a_server_that_is_away_is_one_line() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "_WAIT_SECONDS", 0.001)
        with pytest.raises(ServerUnavailable, match=r"^127.0.0.1 does not answer .*ConnectError"):
            Endpoint("http://user:secret@127.0.0.1:1", "agent")([prompt()])


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ((404, {"error": {"message": "the model 'agent' does not exist"}}),
         "127.0.0.1 does not know --model agent: the model 'agent' does not exist"),
        ((401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
         "127.0.0.1 refuses the key (HTTP 401): --key-env names its variable"),
        ((400, "not\ntoday"), "127.0.0.1 refuses a request (HTTP 400): not today"),
        ((200, "<html>"), "127.0.0.1 does not answer as OpenAI's API: JSON is malformed"),
        ((200, {"choices": []}), "127.0.0.1 does not answer as OpenAI's API: Expected `array`"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_without_the_key(stub: Stub, reply: Reply, line: str) -> None:
    stub.reply = lambda body: reply
    with pytest.raises(UserError) as raised:
        Endpoint(stub.url, "agent", SecretStr(KEY))([prompt()])
    assert not isinstance(raised.value, ServerUnavailable)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)
    assert stub.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is no URL such as"):
        Endpoint(url, "agent")
