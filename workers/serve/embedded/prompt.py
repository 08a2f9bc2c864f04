"""The tokens that the model is shown: of a conversation by its template, or of a text as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from workers.serve.backend import ApiError, Question
from workers.trainer.torch.chat_format import ChatFormat

_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")
_DEEPEST = 64


def check_prompt(question: Question) -> None:
    """Check what can be checked without the model.

    Raises:
        ApiError: 400; `messages` or `prompt` has another form, or more than text.
    """
    if question.kind == "chat":
        _messages(question.body)
    else:
        _text(question.body)


def prompt_tokens(chat: ChatFormat, question: Question, most_characters: int) -> list[int]:
    """Return the token ids of a question that was checked; takes a while for a long one.

    One of more than `most_characters` is too long without a look at its tokens.

    Raises:
        ApiError: 400; the template refuses the messages, or the model has not these tokens.
    """
    param = "messages" if question.kind == "chat" else "prompt"
    if question.kind == "chat":
        try:
            text = chat.prompt(_messages(question.body))
            _require_short(len(text), most_characters, param)
            (tokens,) = chat.encode([text])
        except jinja2.TemplateError as error:
            raise ApiError(
                400, f"the model's chat template refuses the messages: {error}", param=param
            ) from error
    else:
        given = _text(question.body)
        if isinstance(given, str):
            _require_short(len(given), most_characters, param)
            tokens = list(chat.tokenizer(given)["input_ids"])
        else:
            tokens = given
    if not tokens:
        raise ApiError(400, "the prompt is empty", param=param)
    if not chat.facts.knows(tokens):
        raise ApiError(
            400, "the prompt holds tokens, of a picture say, that the model has not", param=param
        )
    limit = chat.facts.positions
    if len(tokens) >= limit:
        raise ApiError(
            400,
            f"the prompt has {len(tokens)} tokens, the model takes {limit} with the answer",
            param=param,
            code="context_length_exceeded",
        )
    return tokens


def _require_short(characters: int, most: int, param: str) -> None:
    if characters > most:
        raise ApiError(
            400,
            f"the prompt has {characters} characters, the model takes {most} at most",
            param=param,
            code="context_length_exceeded",
        )


def _text(body: Mapping[str, Any]) -> str | list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a list of one prompt
    if isinstance(prompt, str):
        return _whole_characters(prompt)
    if isinstance(prompt, list) and {*map(type, prompt)} <= {int} and min(prompt, default=0) >= 0:
        return prompt
    raise ApiError(400, "`prompt` is a text or a list of token ids, one a request", param="prompt")


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("a list of at least one message is needed")
    return [_message(message) for message in messages]


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise _bad(f"each has a role of {', '.join(_ROLES)}")
    for name in ("name", "tool_call_id"):
        if not isinstance(message.get(name), str | None):
            raise _bad(f"{name} is a text")
    calls = message.get("tool_calls")
    if not (isinstance(calls, list | None) and all(isinstance(c, Mapping) for c in calls or ())):
        raise _bad("tool_calls is a list of calls")
    known = {key: _clean(message[key]) for key in _KEYS if message.get(key) is not None}
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        raise _bad("content is missing")
    return {**known, "content": _content(content)}


def _content(content: object) -> str:
    """Return the text; parts each on lines of its own, as vLLM and the trainer read them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _whole_characters(content)
    if not isinstance(content, list):
        raise _bad("content is a text or a list of parts")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            raise _bad("the embedded engine reads text, and no other part of a content")
        text = part.get(part["type"])
        if not isinstance(text, str):
            raise _bad("a part of a content has no text")
        texts.append(_whole_characters(text))
    return "\n".join(texts)


def _clean(value: Any, depth: int = 0) -> Any:
    """Return JSON with texts of whole characters."""
    if depth > _DEEPEST:
        raise _bad("they are nested too deep")
    if isinstance(value, str):
        return _whole_characters(value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each, depth + 1) for each in value]
    return value


def _whole_characters(text: str) -> str:
    """Return the text without half a character, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode()


def _bad(reason: str) -> ApiError:
    return ApiError(400, f"`messages`: {reason}", param="messages")
