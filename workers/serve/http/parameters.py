"""The parameters that a request may have, with their types and ranges; all others are refused.

They are OpenAI's, and vLLM's own of sampling. Whether a backend can do what a parameter asks for,
its `check` says. Null is the same as absent, as in OpenAI's API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from workers.serve.http.messages import Message, Name, ResponseFormat, Tool, ToolChoice

MOST_ANSWERS = 16  # that one request may ask for
_MOST_STOPS = 4
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

_Text = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=1, le=_INT32)]
_TokenId = Annotated[int, Meta(ge=0, le=_INT32)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Plain = str | int | float | bool | None

# Arguments of the function that applies the template, not of the template.
_OF_APPLYING = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
}


class StreamOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """How a stream is to look; `include_obfuscation` means nothing here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """VLLM's own way to bind an answer: to a schema, a choice or a pattern."""

    json: dict[str, Any] | str | None = None
    choice: Annotated[list[_Text], Meta(min_length=1, max_length=1000)] | None = None
    regex: Annotated[str, Meta(max_length=1000)] | None = None
    json_object: bool | None = None


class Parameters(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of requests may have."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64)] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_ANSWERS)] | None = None
    max_tokens: _Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_INT32)] | None = None
    stop: str | Annotated[list[_Text], Meta(max_length=_MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[_TokenId], Meta(max_length=64)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None
    ) = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # They mean nothing here, and clients send them to every server.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    def __post_init__(self) -> None:
        if self.stop == "":
            raise ValueError("`stop` is empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream`")


class ChatParameters(Parameters, kw_only=True):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template_kwargs: dict[str, _Plain] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs`")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("`tool_choice` needs `tools`")
        if refused := _OF_APPLYING.intersection(self.chat_template_kwargs or ()):
            raise ValueError(f"`chat_template_kwargs` may not have {min(refused)}")


class TextParameters(Parameters, kw_only=True):
    """A request to `/v1/completions`; `prompt` is a text or its tokens, or a list of either."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt and self.prompt != "":
            raise ValueError("`prompt` is empty")
        if self.prompts() * (self.n or 1) > MOST_ANSWERS:
            raise ValueError(f"`prompt` and `n` ask for more than {MOST_ANSWERS} answers")

    def prompts(self) -> int:
        """Return how many prompts there are."""
        if isinstance(self.prompt, str) or _are_tokens(self.prompt):
            return 1
        if not all(isinstance(each, str) or _are_tokens(each) for each in self.prompt):
            raise ValueError("`prompt` is neither a text, nor tokens, nor a list of either")
        return len(self.prompt)


def _are_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(each) is int and 0 <= each <= _INT32 for each in value)
    )
