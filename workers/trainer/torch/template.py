"""Runs a model's chat template: a program of others, so with a clock of ours and within bounds."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from babylon_tasks.text import one_line

RENDER_SECONDS = 5.0  # a conversation takes milliseconds
_MOST_CHARACTERS = 1_000_000  # that a template may add to the messages
_MOST_BYTES = 2 << 30  # of memory beyond what the process has

Messages = Sequence[dict[str, Any]]


class _TooSlow(jinja2.TemplateError):
    pass


class Template:
    """The chat template of one tokenizer.

    As in ART, thinking is switched off where the template knows the switch.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        source = tokenizer.chat_template
        # Some models have several templates, by name.
        self.source = source if isinstance(source, str) else json.dumps(source)
        self._options: dict[str, Any] = {}
        self._too_slow = 0
        if "enable_thinking" in self.source:
            self._options["enable_thinking"] = False
        if "preserve_thinking" in self.source:
            self._options["preserve_thinking"] = True

    def render(
        self,
        messages: Messages,
        generation_prompt: bool,
        at: datetime | None = None,
        tools: list[Any] | None = None,
    ) -> str:
        """Return the text of a conversation; with the generation prompt it is what a server shows.

        Args:
            messages: As OpenAI has them.
            generation_prompt: The model is to answer next.
            at: What the template's clock says, in UTC; None: now.
            tools: The tools that the model was offered, as OpenAI has them.

        Raises:
            jinja2.TemplateError: The template refuses these messages, fails, or does not end.
        """
        moment = (at or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
        options = dict(self._options)
        if "strftime_now" in self.source:
            options["strftime_now"] = lambda form: moment.strftime(form)
        allowed = _MOST_CHARACTERS + 4 * sum(len(str(message)) for message in messages)
        # Servers give the template a tool call's arguments as objects; some templates want text.
        last: Exception = jinja2.TemplateError("no form of the messages was tried")
        for form in _forms(messages):
            try:
                # Each call that does not end makes the patience with others shorter.
                with _bounded(RENDER_SECONDS / 2 ** min(self._too_slow, 4)):
                    text: str = self._tokenizer.apply_chat_template(
                        form,
                        tools=tools,
                        tokenize=False,
                        add_generation_prompt=generation_prompt,
                        **options,
                    )
            except _TooSlow:
                self._too_slow += 1
                raise
            except jinja2.TemplateError as error:
                last = error
            except Exception as error:  # noqa: BLE001 - a program of others may raise anything
                last = jinja2.TemplateError(one_line(f"{type(error).__name__}: {error}", 200))
            else:
                if len(text) > allowed + len(str(tools)) * 4:
                    raise jinja2.TemplateError(f"it writes {len(text)} characters")
                return text
        raise last


def _forms(messages: Messages) -> Iterator[list[dict[str, Any]]]:
    plain = [
        {key: value for key, value in message.items() if key == "content" or value}
        for message in messages
    ]
    if any("tool_calls" in message for message in plain):
        yield [_with_objects(message) for message in plain]
    yield plain


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with the arguments of its tool calls as objects, where they are JSON."""
    calls = []
    for call in message.get("tool_calls", []):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            function = call["function"]
            read = json.loads(function["arguments"])
            if isinstance(read, dict):
                call = {**call, "function": {**function, "arguments": read}}
        calls.append(call)
    return {**message, "tool_calls": calls} if calls else message


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Limit time and memory of what runs inside; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower limit is set already
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted = pages * resource.getpagesize() + _MOST_BYTES
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    before = signal.signal(signal.SIGALRM, lambda *_: _stop(seconds))
    waited, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, waited)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _stop(seconds: float) -> None:
    raise _TooSlow(f"it does not end in {seconds:g} s")
