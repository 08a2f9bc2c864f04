"""The endpoint's edge as clients see it: OpenAI's own Python client, and bare HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")

from babylon_tasks.records.api_keys import ApiKey, hash_of
from babylon_tasks.records.call_hashes import prompt_hash, response_hash, text_hash
from tests.serving_fakes import Edge, KeysInMemory, chunk_of, running_edge
from workers.serve.backend import ApiError, Question

openai = pytest.importorskip("openai")

HELLO = [{"role": "user", "content": "YES or NO?"}]
KEY = "bk-a-key-that-nobody-else-has"


@pytest.fixture
def edge() -> Iterator[Edge]:
    with running_edge() as running:
        yield running


@pytest.fixture
def client(edge: Edge) -> Any:
    return openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0)


def settle(edge: Edge) -> None:
    """Wait until no request is under way: metrics are counted after the client has its answer."""
    deadline = time.monotonic() + 10
    while edge.endpoint.in_flight and time.monotonic() < deadline:
        time.sleep(0.005)
    assert edge.endpoint.in_flight == 0


def post(edge: Edge, body: Any = None, path: str = "/v1/chat/completions", **more: Any) -> Any:
    if body is not None:
        more["json"] = {"model": "agent", "messages": HELLO, **body}
    return httpx.post(f"{edge.url}{path}", timeout=10, **more)


def test_openais_client_gets_an_answer(edge: Edge, client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="agent", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "YES or NO"
    assert answer.model == "agent@12"
    assert raw.headers["x-babylon-version"] == "agent-v1.0.12"
    assert answer.usage.total_tokens == 6
    assert answer._request_id
    assert answer.choices[0].logprobs is None
    assert "token_ids" not in raw.text
    assert "prompt_token_ids" not in raw.text


def test_openais_client_reads_a_stream(edge: Edge, client: Any) -> None:
    stream = client.chat.completions.create(model="agent", messages=HELLO, stream=True)
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks] == ["YES", " or", " NO"]
    assert {c.model for c in chunks} == {"agent@12"}
    assert all(c.usage is None and c.choices[0].logprobs is None for c in chunks)

    options = {"include_usage": True}
    more = list(
        client.chat.completions.create(
            model="agent", messages=HELLO, stream=True, stream_options=options, logprobs=True
        )
    )
    assert more[-1].usage.completion_tokens == 3
    assert more[0].choices[0].logprobs.content[0].logprob == -0.5


def test_a_stream_is_events_and_ends_with_done(edge: Edge) -> None:
    answer = post(edge, {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-babylon-version"] == "agent-v1.0.12"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert "token_ids" not in answer.text


def test_text_completions(edge: Edge, client: Any) -> None:
    answer = client.completions.create(model="agent@0", prompt="YES or", n=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["YES or NO", "YES or NO"]
    assert answer.model == "agent@0"
    assert answer.choices[0].logprobs.token_logprobs == [-0.5, -0.5, -0.5]
    chunks = list(client.completions.create(model="agent", prompt=[1, 2], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "YES or NO"


def test_token_ids_are_for_those_who_ask(edge: Edge) -> None:
    answer = post(edge, {"return_token_ids": True}).json()
    assert answer["choices"][0]["token_ids"] == [100, 101, 102]
    assert answer["prompt_token_ids"] == [5, 6, 7]


def test_models_are_listed(client: Any) -> None:
    assert [m.id for m in client.models.list()] == ["agent", "agent@12", "agent-v1.0.12", "agent@0"]
    assert client.models.retrieve("agent@12").id == "agent@12"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="other", messages=HELLO)
    assert refused.value.param == "model"


def test_async_and_many_at_once(edge: Edge) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none") as client:

            async def one(stream: bool) -> str:
                if not stream:
                    whole = await client.chat.completions.create(model="agent", messages=HELLO)
                    return str(whole.choices[0].message.content)
                chunks = await client.chat.completions.create(
                    model="agent", messages=HELLO, stream=True
                )
                return "".join([c.choices[0].delta.content async for c in chunks])

            return list(await asyncio.gather(*(one(n % 2 == 0) for n in range(40))))

    assert asyncio.run(ask_all()) == ["YES or NO"] * 40
    assert len(edge.answers) == 40
    settle(edge)
    assert edge.router.under_way == 0


def test_what_a_backend_cannot_do_is_named(edge: Edge, client: Any) -> None:
    async def refuse(question: Question) -> AsyncIterator[dict[str, Any]]:
        raise ApiError(400, "this engine has no tools", param="tools")
        yield {}

    edge.router.script = refuse
    tool = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="agent", messages=HELLO, tools=[tool], stream=stream
            )
        assert refused.value.param == "tools"
    assert edge.answers == []


def test_the_client_asks_again_where_it_may_help(edge: Edge) -> None:
    left = [
        ApiError(503, "no backend", headers={"retry-after": "0"}),
        ApiError(429, "too many", code="rate_limit_exceeded", headers={"retry-after": "0"}),
    ]

    async def fail_twice(question: Question) -> AsyncIterator[dict[str, Any]]:
        if left:
            raise left.pop()
        async for chunk in edge.router.say(question):
            yield chunk

    edge.router.script = fail_twice
    client = openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=2)
    answer = client.chat.completions.create(model="agent", messages=HELLO)
    assert answer.choices[0].message.content == "YES or NO"


def test_an_error_in_a_stream_is_an_event_and_no_end(edge: Edge, client: Any) -> None:
    async def break_off(question: Question) -> AsyncIterator[dict[str, Any]]:
        yield chunk_of(question, 0, "YES", 0, last=False)
        raise ApiError(502, "the backend went away")

    edge.router.script = break_off
    stream = client.chat.completions.create(model="agent", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="went away"):
        list(stream)
    text = post(edge, {"stream": True}).text
    assert '"error"' in text
    assert "[DONE]" not in text
    assert edge.answers == []


def test_every_answer_is_handed_over(edge: Edge) -> None:
    post(edge, {"n": 2, "stream": True, "user": "trader-1"})
    assert len(edge.answers) == 2
    first = edge.answers[0]
    assert (first.lineage, first.step, first.backend) == ("agent", 12, "vllm")
    assert (first.agent, first.finish_reason) == ("trader-1", "stop")
    assert first.prompt_hash == prompt_hash(HELLO)
    assert first.response_hash == response_hash("YES or NO")
    assert list(first.token_ids) == [100, 101, 102]
    assert list(first.logprobs) == [-0.5] * 3
    assert first.prompt_tokens == 3
    assert first.first_token_ms is not None
    assert first.latency_ms >= first.first_token_ms
    post(edge, {})
    assert list(edge.answers[2].logprobs) == [-0.5] * 3
    assert edge.answers[2].first_token_ms is None
    body = {"model": "agent", "prompt": ["a", "b"], "n": 2}
    httpx.post(f"{edge.url}/v1/completions", json=body)
    hashes = [answer.prompt_hash for answer in edge.answers[3:]]
    assert hashes == [text_hash("a")] * 2 + [text_hash("b")] * 2
    assert all(answer.why_not_kept() is None for answer in edge.answers)


def test_the_agent_is_named_by_header_user_or_system_prompt(edge: Edge) -> None:
    post(edge, {"user": "a"}, headers={"x-babylon-agent": "b"})
    post(edge, {"user": "a"})
    for text in ("You trade.", [{"type": "text", "text": "You trade."}], "You wait."):
        post(edge, {"messages": [{"role": "system", "content": text}, *HELLO]})
    post(edge, {})
    by_header, by_user, plain, parts, other, nobody = edge.router.agents
    assert (by_header, by_user, nobody) == ("b", "a", None)
    assert plain == parts != other
    assert plain is not None
    assert plain.startswith("system:")
    assert len(plain) == 7 + 16


def test_what_means_nothing_here_does_not_reach_a_backend(edge: Edge) -> None:
    sent = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "temperature": None,
        "stop": ["a", "b"],
    }
    assert post(edge, sent).status_code == 200
    ((_, question),) = edge.router.asked
    assert dict(question.body) == {"messages": HELLO, "stop": ["a", "b"]}


def test_an_answer_can_be_sent_back(edge: Edge, client: Any) -> None:
    """As its message came: with all the fields that vLLM writes, most of them empty."""

    async def with_empty_fields(question: Question) -> AsyncIterator[dict[str, Any]]:
        async for answer in edge.router.say(question):
            message = answer["choices"][0]["message"]
            message |= {
                "refusal": None, "annotations": None, "audio": None, "function_call": None,
                "tool_calls": [], "reasoning": None, "reasoning_content": None,
            }  # fmt: skip
            yield answer

    edge.router.script = with_empty_fields
    first = client.chat.completions.create(model="agent", messages=HELLO)
    messages = [*HELLO, first.choices[0].message, *HELLO]
    client.chat.completions.create(model="agent", messages=messages)
    said = edge.router.asked[1][1].body["messages"][1]
    assert (said["role"], said["content"], said["tool_calls"]) == ("assistant", "YES or NO", [])
    assert said.keys().isdisjoint({"annotations", "audio", "function_call"})


def test_tools_and_their_answers_are_passed_on(edge: Edge, client: Any) -> None:
    tool = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "buy", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "bought"},
    ]
    choice = {"type": "function", "function": {"name": "buy"}}
    client.chat.completions.create(
        model="agent",
        messages=messages,
        tools=[tool],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    assert dict(edge.router.asked[0][1].body) == {
        "messages": messages,
        "tools": [tool],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"frobnicate": 1}, "frobnicate"),
    ({"functions": []}, "functions"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "x", "z": 1}]}, "messages[0].z"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
                    ],
                }
            ]
        },
        "messages[0].content[0].type",
    ),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"x": {"y": 1}}}, "chat_template_kwargs[...]"),
    ({"model": ""}, "model"),
]


@pytest.mark.parametrize(("sent", "param"), REFUSED, ids=lambda each: str(each)[:40])
def test_what_is_no_request_is_refused_by_name(resting: Edge, sent: Any, param: str | None) -> None:
    asked = len(resting.router.asked)
    answer = post(resting, sent)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(resting.router.asked) == asked


@pytest.fixture(scope="module")
def resting() -> Iterator[Edge]:
    with running_edge() as running:
        yield running


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"model": "agent", "messages": [], "temperature": NaN}',
        b'{"model": "agent", "seed": 1e999}',
        b'{"model": "agent", "seed": 1' + b"0" * 5000 + b"}",
        b'\xef\xbb\xbf{"model": "agent"}',
        b'{"model": "agent", "user": "\xff"}',
        b'{"model": "agent", "user": "\\ud800"}',
        b'{"model": "agent", "messages": ' + b"[" * 100_000,
        b'{"model": "agent", "prompt": ' + b"[" * 100_000,
        b'{"model": "agent", "structured_outputs": {"json": ' + b'{"a":' * 100_000,
        b'{"model":"agent","messages":[{"role":"user","content":"x"}],"response_format":'
        b'{"type":"json_schema","json_schema":' + b'{"a":' * 200 + b"1" + b"}" * 202,
        b'{"model":"agent","messages":[{"role":"user","content":"x"}],"response_format":'
        b'{"type":"json_schema","json_schema":{"a":' + b"9" * 30 + b"}}}",
    ],
    ids=lambda each: each[:40].decode("latin-1"),
)
def test_json_that_is_odd_is_refused(resting: Edge, body: bytes) -> None:
    answer = post(resting, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_other_paths_and_methods_are_not_there(resting: Edge) -> None:
    for path in ("/", "/docs", "/v1/load_lora_adapter", "/v1/embeddings", "/v1/chat/completions/"):
        answer = httpx.post(f"{resting.url}{path}", json={})
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"
    for method, path in (
        ("GET", "/v1/chat/completions"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/agent"),
    ):
        answer = httpx.request(method, f"{resting.url}{path}")
        assert answer.status_code == 405
        assert answer.json()["error"]["message"]
    assert httpx.head(f"{resting.url}/v1/models").status_code == 405


def test_a_body_says_that_it_is_json(resting: Edge) -> None:
    body = b'{"model": "agent", "messages": [{"role": "user", "content": "x"}]}'
    for headers in (
        {"content-type": "text/plain"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        assert post(resting, content=body, headers=headers).status_code == 415
    odd = {"content-type": "Application/JSON; charset=utf-8"}
    assert post(resting, content=body, headers=odd).status_code == 200


def test_health(edge: Edge) -> None:
    assert httpx.get(f"{edge.url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{edge.url}/health/ready").json()["health"]["promoted"] == {"agent": 12}
    edge.router.silence = {"gpu1:8001": 61.0}
    assert httpx.get(f"{edge.url}/health/live").status_code == 503
    assert httpx.get(f"{edge.url}/healthz").status_code == 503
    edge.endpoint.draining = True
    assert httpx.get(f"{edge.url}/health/ready").status_code == 503
    assert post(edge, {}).status_code == 503


def test_an_internal_error_says_nothing_of_itself(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(question: Question) -> AsyncIterator[dict[str, Any]]:
        raise RuntimeError(f"secret words of {question.body}")
        yield {}

    edge.router.script = fail
    answer = post(edge, {"messages": [{"role": "user", "content": "secret"}]})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "RuntimeError at" in caplog.text
    assert "secret" not in caplog.text


def test_metrics_count_answers_and_errors(edge: Edge) -> None:
    post(edge, {})
    post(edge, {"stream": True})
    post(edge, {"temperature": 9})
    settle(edge)
    text = httpx.get(f"{edge.url}/metrics").text
    labels = 'backend="gpu1:8001",lineage="agent",version="12"'
    answered = 'backend="gpu1:8001",lineage="agent",status="200",version="12"'
    assert f"babylon_serve_requests_total{{{answered}}} 2.0" in text
    assert f"babylon_serve_generated_tokens_total{{{labels}}} 6.0" in text
    assert f"babylon_serve_prompt_tokens_total{{{labels}}} 6.0" in text
    assert 'babylon_serve_errors_total{reason="400"} 1.0' in text
    assert 'babylon_serve_promoted_step{lineage="agent"} 12.0' in text
    assert 'babylon_serve_captured_total{result="captured"} 2.0' in text
    assert "babylon_serve_in_flight 0.0" in text


def test_a_key_is_asked_for_where_there_is_one() -> None:
    keys = KeysInMemory([ApiKey("app", hash_of(KEY.encode()))], settings_key="ü" * 16)
    with running_edge(keys=keys) as edge:
        bearer = {"authorization": f"Bearer {KEY}"}
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Bearer {KEY}x"}):
            for path in ("/v1/models", "/metrics"):
                assert httpx.get(edge.url + path, headers=headers).status_code == 401
            refused = post(edge, {}, headers=headers)
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in refused.text
        assert httpx.get(f"{edge.url}/health/live").status_code == 200
        assert httpx.get(f"{edge.url}/metrics", headers=bearer).status_code == 200
        assert post(edge, {}, headers=bearer).status_code == 200
        own = {b"authorization": b"Bearer " + ("ü" * 16).encode()}
        assert post(edge, {}, headers=own).status_code == 200
        assert len(edge.answers) == 2
        assert KEY not in httpx.get(f"{edge.url}/metrics", headers=bearer).text
