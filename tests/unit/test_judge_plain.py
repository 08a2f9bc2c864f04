"""Any document of a judge becomes a chat completion of OpenAI's form, or an error of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.scoring.judge.dialect import Dialect, named_in
from babylon_tasks.scoring.judge.plain import as_openai, moved
from tests.odd import json_values

odd_messages = st.dictionaries(
    st.sampled_from(
        ["content", "parsed", "tool_calls", "function_call", "reasoning", "reasoning_content",
         "refusal", "role"]
    ),
    json_values,
)  # fmt: skip
odd_choices = st.lists(
    st.fixed_dictionaries(
        {}, optional={"message": odd_messages | json_values, "delta": odd_messages,
                      "text": json_values, "finish_reason": json_values}
    )
    | json_values
)  # fmt: skip
odd_documents = st.fixed_dictionaries(
    {}, optional={"choices": odd_choices | json_values, "usage": json_values, "error": json_values,
                  "detail": json_values, "message": json_values, "id": json_values}
)  # fmt: skip


@given(
    st.sampled_from([200, 201, 400, 404, 422, 500]),
    odd_documents.map(json.dumps).map(str.encode)
    | json_values.map(json.dumps).map(str.encode)
    | st.binary()
    | st.lists(odd_documents).map(
        lambda docs: "".join(f"data: {json.dumps(d)}\n\n" for d in docs).encode()
    ),
)
def test_any_document_is_read_or_becomes_an_error(status: int, raw: bytes) -> None:
    told, body = as_openai(status, "application/json", raw)
    document: dict[str, Any] = json.loads(body)
    if told >= 300:
        assert isinstance(document["error"]["message"], str)
        return
    assert status < 300
    assert document["choices"]
    for choice in document["choices"]:
        assert isinstance(choice["message"]["content"], str)
        assert isinstance(choice["message"].get("reasoning_content", ""), str)
        assert isinstance(choice["finish_reason"], str)
    assert all(isinstance(count, int) and count >= 0 for count in document["usage"].values())


def test_a_redirection_says_where_to_and_no_secret() -> None:
    told = json.loads(moved("https://a/v1/chat/completions?key=hidden"))["error"]["message"]
    assert told == "it redirects to https://a/v1: is that the address for JUDGE_BASE_URL?"
    assert "hidden" not in json.loads(moved("https://u:hidden@a/v1"))["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens "
        "(1000 in the messages, 8000 in the completion). Please reduce the length.",
        "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context "
        "length is 4096 tokens and your request has 100 input tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Rate limit reached for judge on tokens per min.",
        "The response was filtered due to the prompt triggering our content management policy.",
        "The model `judge` does not exist or you do not have access to it.",
        "Incorrect API key provided.",
        "Your credit balance is too low",
        "The server had an error processing your request.",
        "Bad Request",
        "",
    ],
)
def test_a_refusal_of_something_else_names_no_parameter(message: str) -> None:
    assert named_in(message, Dialect().sent()) is None
