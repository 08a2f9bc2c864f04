"""What a recorded LLM call trains on: the prompt as the agent saw it, and its answer.

`messages` wins over the two prompts: it is the conversation that was sent, of any number of turns.
From the prompts come only a system message that it lacks, and the user's next turn where it ends
before that. `prompt` stands for `userPrompt`, or for `messages` if it is a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from babylon_tasks.records.answers import has_tool_calls
from babylon_tasks.records.endings import WHY_IT_ENDED, require_whole
from babylon_tasks.records.messages import are_messages, read_messages
from babylon_tasks.records.parts import Message, NotReadable, read_text, to_json
from babylon_tasks.records.recorded_steps import OddCall, RecordedCall, decode_any
from babylon_tasks.records.steps import Call
from babylon_tasks.records.tools import read_tools

# Where other APIs than OpenAI's first one have the system message.
_INSTRUCTIONS = ("system", "instructions", "systemInstruction", "system_instruction")


def read_call(recorded: RecordedCall) -> Call:
    """Return the call, without its log-probabilities; its prompt or its answer may be empty.

    Raises:
        NotReadable: It cannot be read without doubt.
    """
    if recorded.is_plain():
        return Call(recorded.systemPrompt or "", recorded.userPrompt or "", recorded.response or "")
    try:
        return _read_call(recorded)
    except RecursionError:
        raise NotReadable("odd_shape") from None


def answer_of(recorded: RecordedCall) -> str:
    """Return the answer; "" if there is none, or it cannot be read."""
    if recorded.response is not None or recorded.is_plain():
        return recorded.response or ""
    try:
        return read_call(recorded).response
    except NotReadable:
        return ""


def _read_call(recorded: RecordedCall) -> Call:
    if isinstance(recorded, OddCall):
        raise NotReadable(recorded.reason)
    if has_tool_calls(_read(recorded, ("tool_calls", "toolCalls", "function_call"))):
        raise NotReadable("tool_call")
    require_whole(_read(recorded, WHY_IT_ENDED))
    tools = read_tools(decode_any(recorded.tools)) or read_tools(decode_any(recorded.functions))
    system = recorded.systemPrompt or ""
    for instructions in _read(recorded, _INSTRUCTIONS).values():
        system = _first(system, _instructions(instructions))
    prompt, turns = _prompt(recorded)
    user, answer = _first(recorded.userPrompt, prompt), recorded.response
    if turns:
        turns, answer = _without_answer(turns, answer)
        turns = _completed(turns, system, user)
        system, user = _two_texts(turns)
        if user:
            turns = []
    return Call(
        system,
        user,
        answer or "",
        messages=to_json(turns) if turns else msgspec.UNSET,
        tools=to_json(tools) if tools else msgspec.UNSET,
    )


def _read(recorded: RecordedCall, names: Sequence[str]) -> dict[str, object]:
    return {name: decode_any(getattr(recorded, name)) for name in names}


def _instructions(value: object) -> str | None:
    """Return a system message: text, or Gemini's content with parts."""
    return read_text(value["parts"] if isinstance(value, dict) and "parts" in value else value)


def _prompt(recorded: RecordedCall) -> tuple[str | None, list[Message]]:
    """Return `prompt` if it is text, and the messages that there are."""
    messages, prompt = decode_any(recorded.messages), decode_any(recorded.prompt)
    if are_messages(prompt):
        messages, prompt = messages or prompt, None
    return read_text(prompt), read_messages(messages) if messages else []


def _without_answer(turns: list[Message], response: str | None) -> tuple[list[Message], str | None]:
    """Return the turns before the answer, and the answer, which some apps add to the messages.

    Raises:
        NotReadable: The answer is a tool call, or was cut off.
    """
    last = turns[-1]
    if last["role"] != "assistant":
        return turns, response
    why_not = last.pop("_ended", None)
    if not (response or "").strip() and "tool_calls" in last:
        raise NotReadable("tool_call")
    if response is not None and last["content"].strip() != response.strip():
        return turns, response
    if "tool_calls" in last:
        raise NotReadable("tool_call")
    if why_not:
        raise NotReadable(why_not)
    return turns[:-1], last["content"] if response is None else response


def _completed(turns: list[Message], system: str, user: str) -> list[Message]:
    """Return the turns that were sent, with what of them stands in the prompts alone.

    Raises:
        NotReadable: They end with a turn of the assistant, so the answer may continue that.
    """
    if system and not any(turn["role"] == "system" for turn in turns):
        turns = [{"role": "system", "content": system}, *turns]
    if turns and turns[-1]["role"] in ("user", "tool"):
        return turns
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    if user and not (asked and user in asked[-1]):
        return [*turns, {"role": "user", "content": user}]
    if turns and turns[-1]["role"] == "assistant":
        raise NotReadable("odd_shape")
    return turns


def _two_texts(turns: list[Message]) -> tuple[str, str]:
    """Return the system and the user message if there is nothing else; else two empty texts."""
    if not turns or any(turn.keys() != {"role", "content"} for turn in turns):
        return "", ""
    texts = [turn["content"] for turn in turns]
    roles = [turn["role"] for turn in turns]
    if roles == ["user"]:
        return "", texts[0]
    if roles == ["system", "user"] and all(texts):
        return texts[0], texts[1]
    return "", ""


def _first(one: str | None, other: str | None) -> str:
    """Return the first text that is not blank."""
    return next((text for text in (one, other) if text and text.strip()), one or other or "")
