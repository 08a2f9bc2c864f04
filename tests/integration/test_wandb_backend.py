"""W&B's inference as a backend, on a server of the protocol; W&B itself was not asked."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from tests import openai_server
from tests.openai_server import Stub, completion
from tests.vllm_server import serving
from workers.serve import wandb as wandb_module
from workers.serve.backend import ApiError, BackendAway, Question, Version
from workers.serve.http.gathered import Gathered
from workers.serve.upstream import Upstream
from workers.serve.wandb import Wandb

NAME = "wandb-artifact:///us/agents/babylon-agent:step3"
VERSION = Version("agent", 3, "v1.0.3", "Qwen/Qwen3", inference_name=NAME)
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = "a-key-that-nobody-may-see"


def run(url: str, do: Callable[[Wandb], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        wandb = Wandb(Upstream(url, SecretStr(KEY), "W&B", 5), base_models=False)
        await wandb.load(VERSION)
        try:
            return await do(wandb)
        finally:
            await wandb.close()

    return asyncio.run(main())


def chat(captured: bool = False, **more: Any) -> Question:
    return Question("chat", {**HI, **more}, False, captured)


@pytest.fixture
def wandb_server() -> Any:
    with openai_server.serving() as stub:
        yield stub


def test_a_version_is_asked_by_its_name_there(wandb_server: Stub) -> None:
    async def do(wandb: Wandb) -> None:
        assert wandb.serves(VERSION)
        assert not wandb.serves(Version("agent", 3, "v1.0.3", "Qwen/Qwen3", checkpoint="/x"))
        assert not wandb.serves(Version("agent", 0, None, "Qwen/Qwen3"))  # others have it
        assert set(wandb.loaded()) == {VERSION}
        question = chat(stop="x", seed=None, tools=[], tool_choice="none")
        wandb.check(question)
        answer = await wandb.answer(VERSION, question)
        assert answer["choices"][0]["message"]["content"] == "x"
        await wandb.unload(VERSION)
        assert not wandb.loaded()

    run(wandb_server.url, do)
    expected = {"model": NAME, "stream": False, "temperature": 1.0, "top_p": 1.0, "stop": "x"}
    assert wandb_server.bodies == [{**HI, **expected, "return_token_ids": True}]
    assert wandb_server.paths == {"/v1/chat/completions"}
    assert wandb_server.keys == {f"Bearer {KEY}"}


def test_what_it_refuses_to_tell_is_not_asked_for_again(wandb_server: Stub) -> None:
    def reply(body: dict[str, Any]) -> openai_server.Reply:
        for name in ("return_token_ids", "logprobs"):
            if name in body:
                return 400, {"error": {"message": f"Unknown parameter: {name}", "code": 400}}
        return 200, completion("x")

    wandb_server.reply = reply

    async def do(wandb: Wandb) -> None:
        for _ in range(2):
            await wandb.answer(VERSION, chat(captured=True))
        with pytest.raises(ApiError, match="Unknown parameter: logprobs") as refused:
            await wandb.answer(VERSION, chat(captured=True, logprobs=True))
        assert refused.value.status == 400

    run(wandb_server.url, do)
    asked = [{"return_token_ids", "logprobs"} & set(body) for body in wandb_server.bodies]
    both = {"return_token_ids", "logprobs"}
    assert asked == [both, set(), {"logprobs"}, set(), {"logprobs"}]


@pytest.mark.parametrize("stream", [True, False])
def test_what_it_refuses_by_param_is_left_out_at_once(wandb_server: Stub, stream: bool) -> None:
    def reply(body: dict[str, Any]) -> openai_server.Reply:
        if "return_token_ids" in body:
            return 400, {"error": {"message": "no", "param": "return_token_ids"}}
        chunk = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
        return 200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n" if stream else completion("x")

    wandb_server.reply = reply

    async def do(wandb: Wandb) -> None:
        for _ in range(2):
            question = Question("chat", HI, stream, True)
            if stream:
                assert len([chunk async for chunk in wandb.stream(VERSION, question)]) == 1
            else:
                await wandb.answer(VERSION, question)

    run(wandb_server.url, do)
    asked = [{"return_token_ids", "logprobs"} & set(body) for body in wandb_server.bodies]
    assert asked == [{"return_token_ids", "logprobs"}, {"logprobs"}, {"logprobs"}]


def test_a_refusal_that_quotes_the_client_changes_nothing_for_others(wandb_server: Stub) -> None:
    def reply(body: dict[str, Any]) -> openai_server.Reply:
        if "bad" in body["messages"][0]["content"]:
            return 400, {"error": {"message": f"cannot read {body['messages'][0]['content']}"}}
        return 200, completion("x")

    wandb_server.reply = reply

    async def do(wandb: Wandb) -> None:
        words = [{"role": "user", "content": "bad logprobs return_token_ids"}]
        with pytest.raises(ApiError, match="cannot read"):
            await wandb.answer(VERSION, chat(True, messages=words))
        await wandb.answer(VERSION, chat(captured=True))

    run(wandb_server.url, do)
    assert {"return_token_ids", "logprobs"} <= wandb_server.bodies[-1].keys()


def test_it_streams_with_token_ids() -> None:
    with serving(base=NAME) as server:

        async def do(wandb: Wandb) -> list[dict[str, Any]]:
            question = Question("chat", {**HI, "max_tokens": 3}, True, True)
            return [chunk async for chunk in wandb.stream(VERSION, question)]

        chunks = run(server.url, do)
    assert [c["choices"][0].get("token_ids") for c in chunks] == [None, [10], [11], [12]]


def test_it_counts_as_away_for_a_while_after_it_failed_again_and_again(
    wandb_server: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(wandb: Wandb, times: int) -> None:
        wandb_server.reply = lambda body: (503, "busy")
        for _ in range(times):
            assert await wandb.look()
            with pytest.raises(BackendAway, match=r"W&B fails \(503\)"):
                await wandb.answer(VERSION, chat())
        wandb_server.reply = lambda body: (200, completion("x"))

    async def do(wandb: Wandb) -> None:
        await fail(wandb, 2)
        await wandb.answer(VERSION, chat())
        await fail(wandb, 3)
        assert not await wandb.look()
        monkeypatch.setattr(wandb_module, "_AWAY_SECONDS", 0.0)
        assert await wandb.look()

    run(wandb_server.url, do)


def test_it_counts_as_away_where_nobody_answers(wandb_server: Stub) -> None:
    async def do(wandb: Wandb) -> None:
        with pytest.raises(BackendAway, match="W&B cannot be asked"):
            await wandb.answer(VERSION, chat())
        assert not await wandb.look()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    run(f"http://127.0.0.1:{port}", do)


@pytest.mark.parametrize("tells_ids", [True, False])
def test_the_tokens_of_a_stream_that_is_cut_are_known(tells_ids: bool) -> None:
    """A key's budget counts them: by their ids, else by the pieces of text."""
    with serving(base=NAME) as server:

        async def do(wandb: Wandb) -> None:
            gathered = Gathered()
            async with aclosing(wandb.stream(VERSION, Question("chat", HI, True, False))) as chunks:
                async for chunk in chunks:
                    if not tells_ids:
                        for choice in chunk["choices"]:
                            choice.pop("token_ids", None)
                    gathered.add(chunk)
                    if gathered.completion_tokens == 4:
                        return
            pytest.fail("fewer were counted")

        run(server.url, do)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_shown_to_nobody(wandb_server: Stub, status: int) -> None:
    wandb_server.reply = lambda body: (status, {"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(BackendAway, match="W&B refuses our key") as away:
        run(wandb_server.url, lambda wandb: wandb.answer(VERSION, chat()))
    assert KEY not in str(away.value)


def test_too_many_requests_say_when_to_come_again(wandb_server: Stub) -> None:
    wandb_server.reply = lambda body: (429, {"error": {"message": "slow down"}})
    with pytest.raises(ApiError, match="slow down") as refused:
        run(wandb_server.url, lambda wandb: wandb.answer(VERSION, chat()))
    assert refused.value.status == 429
