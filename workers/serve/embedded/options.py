"""What a request may ask of our own engine: read, and refused by name where it cannot do it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec

from workers.serve.backend import ApiError, Question

MAX_TOKENS = 256  # where the client names none
MOST_STOP = 1000  # characters

_Stop = Annotated[str, msgspec.Meta(max_length=MOST_STOP)]


class StreamOptions(msgspec.Struct):
    """Of a streamed answer."""

    include_usage: bool | None = None


class Options(msgspec.Struct):
    """The fields that the engine obeys, beside `messages` and `prompt`; ranges are checked before.

    `http/parameters.py` has them.
    """

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: _Stop | list[_Stop] | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = None  # vLLM's: a token is `token_id:N`, not its text
    return_token_ids: bool | None = None

    @property
    def wanted_tokens(self) -> int:
        """The longest answer that the client asks for."""
        return self.max_completion_tokens or self.max_tokens or MAX_TOKENS

    @property
    def stops(self) -> list[str]:
        """The texts before which the answer ends."""
        stop = self.stop or []
        return [stop] if isinstance(stop, str) else stop

    @property
    def wants_logprobs(self) -> bool:
        """Whether the client asked for them; `logprobs: 0` of a text completion does."""
        return self.logprobs is not None and self.logprobs is not False

    def alternatives(self, kind: Literal["chat", "text"]) -> int:
        """Return how many likely tokens are told beside each chosen one."""
        if kind == "chat":
            return self.top_logprobs or 0
        return 0 if self.logprobs is None else int(self.logprobs)

    @property
    def includes_usage(self) -> bool:
        """Whether a last chunk tells the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _is(*values: object) -> Callable[[object], bool]:
    return lambda value: value in values


# Fields that change an answer: the values with which they change nothing here.
_NEUTRAL: dict[str, Callable[[object], bool]] = {
    "tools": _is([]),
    "tool_choice": _is("none", "auto"),
    "response_format": _is({"type": "text"}),
    "frequency_penalty": _is(0),
    "presence_penalty": _is(0),
    "repetition_penalty": _is(1),
    "logit_bias": _is({}),
    "top_k": _is(0, -1),
    "min_p": _is(0),
    "min_tokens": _is(0),
    "echo": _is(False),
    "suffix": _is(""),
    "ignore_eos": _is(False),
    "skip_special_tokens": _is(True),
    "include_stop_str_in_output": _is(False),
    "stop_token_ids": _is([]),
    # What the template is told is what the trainer told it.
    "chat_template_kwargs": lambda value: (
        isinstance(value, Mapping)
        and value.items() <= {"enable_thinking": False, "preserve_thinking": True}.items()
    ),
}
# Fields that change nothing in an answer.
_OF_NO_EFFECT = frozenset({"messages", "prompt", "parallel_tool_calls"})
_KNOWN = frozenset(Options.__struct_fields__) | _OF_NO_EFFECT


def read_options(question: Question) -> Options:
    """Return what a question asks for.

    Raises:
        ApiError: 400 with the parameter that is wrong, or that this engine cannot do.
    """
    for name, value in question.body.items():
        if value is None or name in _KNOWN:
            continue
        neutral = _NEUTRAL.get(name)
        if neutral is None or not neutral(value):
            raise ApiError(
                400,
                f"the embedded engine cannot do {name!r} with this value: leave it out, or serve "
                "with vLLM",
                param=name,
                code="unsupported_parameter",
            )
    try:
        options = msgspec.convert(dict(question.body), Options)
    except msgspec.ValidationError as error:
        place = re.search(r"\$\.(\w+)", str(error))
        raise ApiError(400, str(error), param=place[1] if place else None) from None
    return options
