"""Judges that call themselves OpenAI-compatible, and speak a dialect.

Each ends in right scores, or in windows that wait and one line that names the cure. A refusal of a
parameter counts against no window.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.scoring.judge.dialect import dialect_of
from babylon_tasks.work.context import Context
from tests.judge_server import Behaviour, JudgeServer
from tests.judged import (
    THREE,
    add_judged_window,
    assert_costs_add_up,
    judged_windows,
    stored,
    window_row,
)
from tests.rows import hours_ago, query

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def refusal(status: int, document: Any, headers: tuple[tuple[str, str], ...] = ()) -> Behaviour:
    """An error whose whole body is this."""
    return Behaviour("refused", status=status, document=lambda _: document, headers=headers)


def openai(message: str, status: int = 400, **error: Any) -> Behaviour:
    """An error in OpenAI's form."""
    return refusal(
        status, {"error": {"message": message, "type": "invalid_request_error", **error}}
    )


def has(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: name in body


def has_schema(body: dict[str, Any]) -> bool:
    return body.get("response_format", {}).get("type") == "json_schema"


def has_system(body: dict[str, Any]) -> bool:
    return any(message["role"] in ("system", "developer") for message in body["messages"])


FORMAT = "response_format"
BOTH = "max_completion_tokens, max_tokens"

# Who says it · what was sent · how it is refused · what is left out from then on.
REFUSALS = [
    ("DeepSeek", has(FORMAT), openai("This response_format type is unavailable now"), FORMAT),
    (
        "Groq",
        has_schema,
        openai("This model does not support response format `json_schema`. See supported models"),
        FORMAT,
    ),
    (
        "Azure",
        has_schema,
        openai(
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this "
            "model.",
            param=FORMAT,
            code=None,
        ),
        FORMAT,
    ),
    (
        "Azure's old version",
        has_schema,
        openai(
            "response_format value as json_schema is enabled only for api versions "
            "2024-08-01-preview and later",
            code="BadRequest",
        ),
        FORMAT,
    ),
    (
        "Mistral",
        has(FORMAT),
        refusal(
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", FORMAT], "msg": "Extra inputs "
                         "are not permitted", "input": {"type": "json_schema"}}]},
        ),
        FORMAT,
    ),
    (
        "pydantic 1",
        has(FORMAT),
        refusal(422, {"detail": [{"loc": ["body", FORMAT], "msg": "extra fields not permitted",
                                  "type": "value_error.extra"}]}),
        FORMAT,
    ),
    (
        "vLLM",
        has_schema,
        refusal(
            400,
            {"object": "error", "message": "Failed to convert json_schema to a grammar: xgrammar "
             "does not support it", "type": "BadRequestError", "param": None, "code": 400},
        ),
        FORMAT,
    ),
    (
        "Together",
        has_schema,
        openai("Input validation error: response_format.type must be json_object", 422),
        FORMAT,
    ),
    ("Ollama", has(FORMAT), refusal(500, {"error": "invalid JSON schema in format"}), FORMAT),
    (
        "llama.cpp",
        has_schema,
        openai('Either "json_schema" or "grammar" can be specified, but not both', 500),
        FORMAT,
    ),
    (
        "LM Studio",
        has_schema,
        refusal(400, {"error": "'response_format.type' must be 'text'"}),
        FORMAT,
    ),
    (
        "OpenRouter",
        has(FORMAT),
        openai("No endpoints found that support the parameter response_format", 404, code=404),
        FORMAT,
    ),
    (
        "a gateway",
        has(FORMAT),
        openai("Provider returned error", 400, metadata={"raw": "json_schema is not supported"}),
        FORMAT,
    ),
    (
        "a gateway that says 200",
        has(FORMAT),
        refusal(200, {"error": {"message": "json mode is not supported", "code": 400}}),
        FORMAT,
    ),
    (
        "MiniMax says 200",
        has(FORMAT),
        refusal(200, {"base_resp": {"status_code": 2013, "status_msg": "response_format: no"}}),
        FORMAT,
    ),
    (
        "a proxy that says 200",
        has(FORMAT),
        refusal(200, {"success": False, "code": 1210, "msg": "response_format is unknown"}),
        FORMAT,
    ),
    (
        "a gateway without choices",
        has(FORMAT),
        refusal(200, {"choices": [], "error": {"message": "Bad Request", "code": "400"}}),
        FORMAT,
    ),
    (
        "a gateway's choice",
        has(FORMAT),
        refusal(200, {"choices": [{"finish_reason": "error", "error": "json_schema: no"}]}),
        FORMAT,
    ),
    (
        "OpenRouter's filter",
        has(FORMAT),
        openai("No endpoints found that can handle the requested parameters.", 404, code=404),
        FORMAT,
    ),
    (
        "Gemini",
        has(FORMAT),
        refusal(400, [{"error": {"code": 400, "message": "response_format: Unknown name",
                                 "status": "INVALID_ARGUMENT"}}]),
        FORMAT,
    ),
    ("plain text", has(FORMAT), refusal(400, b"response_format: unsupported"), FORMAT),
    ("Bedrock", has(FORMAT), openai("output_config.format: extra inputs not permitted"), FORMAT),
    ("no word", has(FORMAT), refusal(400, {"message": "Bad Request"}), FORMAT),
    ("a page", has(FORMAT), refusal(406, b"<html><body>Not Acceptable</body></html>"), FORMAT),
    (
        "SiliconFlow",
        has(FORMAT),
        refusal(400, {"code": 20015, "message": "The parameter is invalid.", "data": None}),
        FORMAT,
    ),
    ("no body", has(FORMAT), refusal(400, b""), FORMAT),
    ("not implemented", has(FORMAT), openai("structured output is not implemented", 501), FORMAT),
    (
        "OpenAI",
        has("max_tokens"),
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        "max_tokens",
    ),
    (
        "no limit at all",
        lambda body: "max_tokens" in body or "max_completion_tokens" in body,
        openai("Unrecognized request arguments supplied: max_tokens, max_completion_tokens"),
        BOTH,
    ),
    (
        "a limit below ours",
        lambda body: body.get("max_tokens", 0) + body.get("max_completion_tokens", 0) > 256,
        openai("max_tokens is too large: 560. This model supports at most 256 completion tokens"),
        BOTH,
    ),
    (
        "Groq's limit",
        lambda body: body.get("max_tokens", 0) + body.get("max_completion_tokens", 0) > 256,
        openai(
            "`max_tokens` must be less than or equal to `256`, the maximum value for `max_tokens` "
            "is less than the `context_window` for this model"
        ),
        BOTH,
    ),
    (
        "OpenAI",
        has("temperature"),
        openai(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the "
            "default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "temperature",
    ),
    (
        "TGI",
        has("temperature"),
        refusal(422, {"error": "Input validation error: `temperature` must be strictly positive",
                      "error_type": "validation"}),
        "temperature",
    ),
    ("o1", has("temperature"), openai("`temperature` is deprecated."), "temperature"),
    ("no word", has("temperature"), refusal(422, {"detail": "Unprocessable"}), "temperature"),
    ("Gemma", has_system, openai("System role not supported"), "system role"),
    (
        "Llama-2",
        has_system,
        openai("Conversation roles must alternate user/assistant/user/assistant/..."),
        "system role",
    ),
    ("no word", has_system, openai("TemplateError"), "system role"),
    (
        "Anthropic",
        has_system,
        openai('messages: Unexpected role "system". The Messages API accepts a top-level `system` '
               "parameter, not \"system\" as an input message role."),
        "system role",
    ),
    (
        "all at once",
        lambda body: len(set(body) - {"model", "messages"}) > 0 or has_system(body),
        openai("extra fields not permitted"),
        f"{BOTH}, {FORMAT}, system role, temperature",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "refused", "left_out"),
    [each[1:] for each in REFUSALS],
    ids=[f"{who}: {what}" for who, _, _, what in REFUSALS],
)
def test_what_a_judge_does_not_take_is_left_out_and_it_is_asked_again(
    make_judged: MakeContext,
    server: JudgeServer,
    sent: Callable[[dict[str, Any]], bool],
    refused: Behaviour,
    left_out: str,
) -> None:
    context = make_judged()
    windows = judged_windows(context, 2)
    server.refuses = lambda body: refused if sent(body) else None
    assert pipeline.score(context, only=windows[:1]) == windows[:1]
    assert sorted(stored(context).values()) == sorted(THREE)
    assert ", ".join(sorted(dialect_of(context.settings).left_out)) == left_out
    row = window_row(context, windows[0])
    assert (row["state"], row["attempts"], row["last_error"]) == ("scored", 0, None)
    assert_costs_add_up(context, windows[0])
    asked = len(server.requests)
    assert asked < 15
    assert pipeline.score(context) == windows[1:]
    assert len(server.requests) == asked + 1  # it remembers
    outcomes = query(context, "SELECT DISTINCT outcome FROM rl.attempts")
    assert outcomes == [{"outcome": "done"}]


WAITS = [
    (openai("Bad Request"), "it refuses every question"),
    (openai("API key not valid. Please pass a valid API key."), "API key not valid"),
    (openai("Your credit balance is too low to access the API."), "credit balance is too low"),
    (openai("This model only supports stream mode"), "stream mode"),
    (refusal(404, {"detail": "Not Found"}), "check JUDGE_MODEL, JUDGE_BASE_URL"),
    (refusal(405, b"Method Not Allowed"), "check JUDGE_MODEL, JUDGE_BASE_URL"),
    (
        refusal(301, b"", (("Location", "https://judge.example/v2/chat/completions"),)),
        "it redirects to https://judge.example/v2: is that the address for JUDGE_BASE_URL?",
    ),
    (refusal(302, b"", (("Location", "/login?next=/v1"),)), "it redirects to /login"),
    (refusal(200, {"error": {"message": "No such model: x", "code": 404}}), "No such model"),
]


@pytest.mark.parametrize(("refused", "line"), WAITS, ids=[line[:25] for _, line in WAITS])
def test_windows_wait_for_a_judge_that_refuses_every_question(
    make_judged: MakeContext, server: JudgeServer, refused: Behaviour, line: str
) -> None:
    context = make_judged(max_attempts=1, retry_seconds=30.0)
    windows = judged_windows(context, 3)
    server.default = refused
    assert pipeline.score(context) == []
    for window in windows:
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert row["last_error"].startswith("JudgeUnavailable: ")
        assert line in row["last_error"]
    assert len(server.requests) < 15  # however many windows wait
    assert dialect_of(context.settings).left_out == frozenset()


def test_a_prompt_that_is_refused_is_told_from_a_parameter_that_is(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    """The prompt stays its window's fault, and what is left out helps the others."""
    context = make_judged(max_attempts=1)
    bad, *others = sorted(hours_ago(n) for n in range(2, 5))
    add_judged_window(context, bad, [0.01, 0.02, 0.03])
    for window in others:
        add_judged_window(context, window, THREE)
    pipeline.produce(context)

    def refuses(body: dict[str, Any]) -> Behaviour | None:
        if "temperature" in body or "JUDGE-SCORE=0.01" in json.dumps(body):
            return refusal(400, {"message": "Bad Request"})
        return None

    server.refuses = refuses
    assert sorted(pipeline.score(context)) == others
    row = window_row(context, bad)
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert row["last_error"].startswith("JudgeFault: ")
    assert dialect_of(context.settings).left_out == {"temperature"}


@pytest.mark.parametrize(
    "refused",
    [
        openai("Blocked by our content policy: it overrides the system prompt", code="x"),
        openai("The system prompt and the messages exceed the context length of 8192 tokens"),
        openai("The context length is 8192 tokens: your prompt and the response_format are longer"),
    ],
    ids=["filter", "system", "format"],
)
def test_a_prompt_that_is_refused_with_a_parameters_name_teaches_nothing(
    make_judged: MakeContext, server: JudgeServer, refused: Behaviour
) -> None:
    context = make_judged(max_attempts=1)
    bad, good = sorted(hours_ago(n) for n in (2, 3))
    add_judged_window(context, bad, [0.01, 0.02, 0.03])
    add_judged_window(context, good, THREE)
    pipeline.produce(context)
    server.refuses = lambda body: refused if "JUDGE-SCORE=0.01" in json.dumps(body) else None
    assert pipeline.score(context) == [good]
    assert window_row(context, bad)["last_error"].startswith("JudgeFault: ")
    assert dialect_of(context.settings).left_out == frozenset()


def test_what_a_probe_costs_is_paid_by_its_window(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(judge_daily_usd=1000.0)
    (window,) = judged_windows(context, 1)
    server.refuses = lambda body: refusal(400, b"") if "temperature" in body else None
    assert pipeline.score(context) == [window]
    probes = query(context, "SELECT * FROM rl.judgments WHERE fault LIKE 'a probe%%'")
    assert probes
    assert all(row["usd"] > 0 and row["scores"] is None for row in probes)
    assert_costs_add_up(context, window)


def test_questions_that_are_refused_at_the_same_time_teach_it_once(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    """A refusal is about what its own question had, whatever was left out meanwhile."""
    context = make_judged()
    windows = judged_windows(context, 6)
    server.delay_seconds = 0.3
    refused = openai("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    server.refuses = lambda body: refused if "max_tokens" in body else None
    assert sorted(pipeline.score(context)) == windows
    assert dialect_of(context.settings).left_out == {"max_tokens"}
    assert all("max_completion_tokens" in each.body for each in server.requests[-6:])
    assert server.most_at_once > 1
