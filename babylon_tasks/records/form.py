"""The form of an answer: whether an action can be read from it, and whether it refuses.

A model that was trained badly loses the form first, before anybody has lost money by it.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any, NoReturn

from babylon_tasks.errors import UserError
from babylon_tasks.text import first_line, one_line

FormCheck = Callable[[str], bool]

# For one answer, by a deployment's own check: a loaded machine is not one that hangs.
MOST_SECONDS = 1.0

_log = logging.getLogger(__name__)

# Actions are a few hundred characters. What is longer thinks before it acts, so its end is read.
_MOST_CHARACTERS = 50_000
_MOST_OBJECTS = 1_000

# Where an action's name stands, the first that is there decides: `actionType` is what the app
# records, `action` what its prompts ask for, and the others are what agents write instead.
_NAMES = ("action", "actionType", "action_type", "decision", "actions")
# `type` names one as well, if it is not that of a message or one of its parts.
_PARTS = ("text", "message", "thinking", "reasoning", "error", "object", "function", "tool_use")
# A tool call that is text: the name of a function beside its arguments.
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_DEEPEST = 4  # objects in which a name may be: {"actions": [{"action": {"type": "BUY"}}]}

# A thought ends where the tag closes; of one that does not, nothing is an answer yet.
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
# A string is read to its end or, if it has none, to the text's: so the time is linear.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
# Tool calls and actions that chat templates and agents write in tags.
_FUNCTION = re.compile(r"<function=\s*\w[\w.:-]*\s*>")
_ACTION_TAG = re.compile(r"<(actions?)>\s*\w[^<>]*</\1>")

# Refusals in place of an answer, as chat models begin them: "I'm sorry, but I cannot …",
# "Unfortunately, I can't help with that", "I am unable to assist", "As an AI, …".
_SORRY = (
    r"(?:(?:i am|i'm)(?: very| so)? sorry\b[^.!?]{0,40}?|sorry|(?:i )?apologi[sz]e\b|my apologies)"
    r"[\s,.;:!-]*(?:but )?"
)
_CANNOT = (
    r"(?:i (?:can't|can ?not|won't|will not|must decline to|refuse to|decline to)"
    r"|(?:i am|i'm) (?:unable|not able|not allowed) to)"
)
_WHAT = (
    r"(?:help|assist|comply|provide|fulfil|answer|respond|participate|engage|continue|complete"
    r"|recommend|offer|generate|create|discuss|advise|give|do (?:that|this|so)"
    r"|make (?:that|this|such|any))"
)
_REFUSAL = re.compile(
    rf"(?:{_SORRY})?(?:as an ai\b|(?:i am|i'm) (?:just |only )?an ai\b)"
    rf"|{_SORRY}{_CANNOT}\b|(?:unfortunately,? )?{_CANNOT} {_WHAT}",
    re.IGNORECASE,
)
_REFUSAL_CHARACTERS = 200  # of the text's begin that are looked at


def well_formed(text: str) -> bool:
    """Tell whether an action of the app can be read from an answer.

    It can from a whole JSON object that names an action, alone, in a fence, or after other text;
    and from a tool call that is text. Any text gets an answer within milliseconds.
    """
    answer = _without_thought(text[-_MOST_CHARACTERS:])
    return any(map(_names_action, _objects(answer))) or _calls_in_tags(answer)


def is_unusable(text: str, check: FormCheck = well_formed) -> bool:
    """Tell whether an answer is empty, or refuses to answer; a well-formed one never is."""
    if check(text):
        return False
    answer = _without_thought(text[-_MOST_CHARACTERS:]).lstrip("\"'`*# \t\r\n")
    begin = answer[:_REFUSAL_CHARACTERS].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return not answer or _REFUSAL.match(" ".join(begin.split())) is not None


def load_form_check(setting: str | None) -> FormCheck:
    """Return the check that FORM_CHECK names as `module:function`, or `well_formed` without one.

    It is asked in place of `well_formed`. An answer at which it raises, or takes longer than
    `MOST_SECONDS`, is malformed; the first time is logged.

    Raises:
        UserError: There is no such function.
    """
    if setting is None:
        return well_formed
    module, _, name = setting.partition(":")
    try:
        check = getattr(import_module(module), name)
    except Exception as error:  # a module may raise anything as it is imported
        said = one_line(f"{type(error).__name__}: {first_line(error)}", 200)
        raise UserError(f"FORM_CHECK={setting} cannot be imported ({said})") from error
    if not callable(check):
        raise UserError(f"FORM_CHECK={setting} is not a function that takes a text")
    if iscoroutinefunction(check):  # what it returns would count as true
        raise UserError(f"FORM_CHECK={setting} is an async function: nobody awaits its answer")
    return _Guarded(setting, check)


class _Guarded:
    """A deployment's check; what it raises is no answer's fault and ends no exam."""

    def __init__(self, setting: str, check: Callable[[str], object]) -> None:
        self._setting, self._check, self._logged = setting, check, False

    def __call__(self, text: str) -> bool:
        try:
            with _time_limit():
                return bool(self._check(text))
        except Exception as error:  # noqa: BLE001 - it is not our code
            if not self._logged:
                self._logged = True
                said = one_line(f"{type(error).__name__}: {first_line(error)}", 200)
                _log.warning(
                    "FORM_CHECK=%s raises, and such answers count as malformed: %s",
                    self._setting,
                    said,
                )
            return False


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TimeoutError in what takes too long: the exam's lease, or the endpoint, waits for it.

    A pattern that tries for ever has Python's lock, so no thread could end it; a signal does, which
    the main thread alone gets.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_timeout)
    (others, _), began = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # None: not Python's own
        if others:
            left = others - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))


def _raise_timeout(*_: object) -> NoReturn:
    raise TimeoutError(f"it took longer than {MOST_SECONDS:g} s")


def _without_thought(text: str) -> str:
    """Return what follows the thinking; nothing if the thinking did not end."""
    answer = _THOUGHT.sub("", text, count=1)
    return answer[: opened.start()] if (opened := _OPEN_THOUGHT.search(answer)) else answer


def _calls_in_tags(text: str) -> bool:
    """Tell whether a text calls a tool, or names an action, in tags that are closed."""
    opened = _FUNCTION.search(text)
    closed = opened is not None and "</function>" in text[opened.end() :]
    return closed or _ACTION_TAG.search(text) is not None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects of a text; one that is cut off ends the search."""
    start = text.find("{")
    for _ in range(_MOST_OBJECTS):
        if start < 0 or (end := _end_of(text, start)) is None:
            return
        with suppress(ValueError, RecursionError):  # braces in a text
            yield json.loads(text[start:end], parse_constant=_refuse)
        start = text.find("{", end)


def _end_of(text: str, start: int) -> int | None:
    """Return where the brace at `start` is closed, or None if it is not."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if not depth:
                return token.end()
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _names_action(value: dict[str, Any], depth: int = 0) -> bool:
    """Tell whether an object names an action, or calls a tool."""
    for key in _NAMES:
        if key in value:
            return _is_name(value[key], depth)
    if "type" in value and value["type"] not in _PARTS:
        return _is_name(value["type"], depth)
    for key in ("tool_calls", "toolCalls", "function_call", "function"):
        if isinstance(value.get(key), list | dict):
            return _is_name(value[key], depth)
    called = depth > 0 or any(key in value for key in _ARGUMENTS)
    return called and _is_name(value.get("name", value.get("tool")), depth)


def _is_name(value: object, depth: int) -> bool:
    """Tell whether a value is a name, or objects that each have one."""
    if isinstance(value, str):
        return bool(value.strip())
    if depth == _DEEPEST:
        return False
    if isinstance(value, list):
        return bool(value) and all(_is_name(each, depth + 1) for each in value)
    return isinstance(value, dict) and _names_action(value, depth + 1)
