"""Long bodies keep nobody waiting: what is costly is refused, or done beside the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")

from tests.serving_fakes import running_edge
from workers.serve.backend import ApiError
from workers.serve.http import completions, gathered
from workers.serve.http.requests import parse

LONG = "word " * 20_000


def ask(url: str, content: str) -> httpx.Response:
    body = {"model": "agent", "messages": [{"role": "user", "content": content}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


@pytest.mark.parametrize(("module", "name"), [(completions, "parse"), (gathered, "_prompt_hash")])
def test_others_are_answered_while_a_long_body_is_worked_on(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    begun, answered = threading.Event(), threading.Event()
    work: Callable[..., Any] = getattr(module, name)

    def slow(*arguments: Any) -> Any:
        if not begun.is_set():  # the long body, which comes first
            begun.set()
            assert answered.wait(20)
        return work(*arguments)

    monkeypatch.setattr(module, name, slow)
    with running_edge() as edge:
        statuses: list[int] = []
        thread = threading.Thread(
            target=lambda: statuses.append(ask(edge.url, LONG).status_code), daemon=True
        )
        thread.start()
        assert begun.wait(20)
        assert ask(edge.url, "YES or NO?").status_code == 200
        answered.set()
        thread.join(20)
        assert statuses == [200]
        assert len(edge.answers) == 2


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "agent", "messages": [{"role": "user", "content": "x"}, *messages], **more}


def called(arguments: str, times: int = 1) -> dict[str, Any]:
    call = {"id": "a", "function": {"name": "x", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call] * times}


def tool(numbers: int) -> dict[str, Any]:
    function = {"name": "x", "parameters": {"enum": [0] * numbers}}
    return {"type": "function", "function": function}


NO = "messages: too many parts, calls or fields"
TOO_MUCH = [
    (chat(tools=[tool(200_000)]), "bytes beside messages and prompt"),
    (chat(metadata={"a": "x" * 300_000}), "bytes beside messages and prompt"),
    (chat({"role": "user", "content": [{"type": "text", "text": ""}] * 60_000}), NO),
    (chat(called("", 30_000)), NO),
    (chat({"role": "assistant", "annotations": [0] * 2_000_000}), "Expected `object`"),
    ({"model": "agent", "prompt": [0] * 1_100_000}, "tokens"),
    ({"model": "agent", "prompt": [[0]] * 400_000}, "lists"),
    ({"model": "agent", "prompt": ["a", *[[0]] * 400_000]}, "neither"),
    ({"model": "agent", "prompt": [0, *[{}] * 400_000]}, "neither"),
]
ENOUGH = [
    chat({"role": "user", "content": "\"[{':,\\" * 500_000}),
    chat(*[{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 9_000),
    chat(tools=[tool(100_000)]),
    chat(called(json.dumps({"text": LONG}), 10)),
    {"model": "agent", "prompt": [12345] * 1_000_000},
    {"model": "agent", "prompt": [[1, 2], [3]]},
    {"model": "agent", "prompt": ["[[[[", "a,b"]},
]


def parsed(body: dict[str, Any]) -> Any:
    kind = "chat" if "messages" in body else "text"
    encoded = json.dumps(body, separators=(",", ":")).encode()
    assert len(encoded) < 8 * 2**20
    return parse(kind, encoded, None, captured=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("body", "reason"), TOO_MUCH, ids=range(len(TOO_MUCH)))
def test_what_would_take_long_is_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApiError) as refused:
        parsed(body)
    assert refused.value.status == 400
    assert reason in str(refused.value)


@pytest.mark.parametrize("body", ENOUGH, ids=range(len(ENOUGH)))
def test_what_is_only_long_is_not(body: dict[str, Any]) -> None:
    assert parsed(body).model == "agent"


def test_very_long_arguments_are_not_read_for_a_hash() -> None:
    with running_edge() as edge:
        for count in (100_000, 20_000):
            arguments = json.dumps({"text": [0] * count})
            body = chat(called(arguments), {"role": "tool", "content": "done", "tool_call_id": "a"})
            answer = httpx.post(f"{edge.url}/v1/chat/completions", json=body, timeout=30)
            assert answer.status_code == 200
        assert [one.prompt_hash is None for one in edge.answers] == [True, False]
