"""The shape of a conversation, as OpenAI's API has it; an unknown field is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Part(Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content: text, since no backend takes anything else."""

    type: Literal["text", "refusal"]
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if getattr(self, self.type) is UNSET:
            raise ValueError(f"a part of type {self.type} needs `{self.type}`")


class CalledFunction(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a model called."""

    name: str
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    """A call of a tool by the model."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | UnsetType = UNSET  # in chunks that a client put together


class Annotation(Struct, kw_only=True):
    """What a part of an answer refers to."""

    type: str


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET

    # Answers have them, empty, and clients send answers back as they came.
    annotations: list[Annotation] | UnsetType | None = UNSET
    audio: UnsetType | None = UNSET
    function_call: UnsetType | None = UNSET

    def __post_init__(self) -> None:
        self.annotations = self.audio = self.function_call = UNSET
        if not self.content and self.content != "" and self.role not in ("assistant", "function"):
            raise ValueError(f"a message of role {self.role} needs `content`")

    def text(self) -> str:
        """Return the content's text, without what is no text."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content or []
        return "".join(part.text for part in parts if isinstance(part.text, str))


class Function(Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | UnsetType | None = UNSET
    parameters: dict[str, Any] | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class Tool(Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool of the only kind there is here."""

    type: Literal["function"]
    function: Function


class NamedFunction(Struct, forbid_unknown_fields=True, kw_only=True):
    """The name of a function."""

    name: str


class ToolChoice(Struct, forbid_unknown_fields=True, kw_only=True):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.type == "json_schema" and not self.json_schema:
            raise ValueError("the type json_schema needs `json_schema`")
