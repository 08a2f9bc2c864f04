"""Logging for every role: one line an event, to standard error.

What a line is about stands in its fields: `lineage`, `window` or `windows`, `step` and `token` of
the work in whose `bound` block it was logged.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from babylon_tasks.text import one_line

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

# For people, or one JSON object a line for programs.
LogFormat = Literal["console", "json"]

_MOST_CHARACTERS = 4000
_MOST_TRACEBACK_CHARACTERS = 16_000
_MOST_VALUE_CHARACTERS = 200
_MOST_NAMED = 3  # of a list, on a console
_THIRD_PARTIES_LEVEL = logging.WARNING

# Not structlog's own: its import takes 0.1 CPU seconds, and most commands log nothing.
_FIRST = ("lineage", "window", "windows", "step", "token")  # in this order, then others
_MARK = "babylon_log_fields"
_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 never changed


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add these fields to all that is logged in the block, by this thread or task.

    A callable is asked at each line. A field that is None, or for which it returns None, is left
    out. An error that leaves the block takes them along, see `mark`.
    """
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    except BaseException as error:
        mark(error)
        raise
    finally:
        _fields.reset(token)


def mark(error: BaseException) -> None:
    """Give an error the fields of here, unless it has some: who logs it further up has none."""
    if not hasattr(error, _MARK):
        setattr(error, _MARK, _bound_now())


def configure_logging(level: str, form: LogFormat = "console") -> None:
    """Log from `level` up; third parties, and Celery's two lines a task, only warnings."""
    handler = logging.StreamHandler()
    colors = form == "console" and handler.stream.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(_Lines(form, colors))
    logging.basicConfig(handlers=[handler], level=_THIRD_PARTIES_LEVEL, force=True)
    logging.captureWarnings(form == "json")  # what libraries warn of would be no JSON
    for ours in ("babylon_tasks", "workers", "celery"):
        logging.getLogger(ours).setLevel(level)
    if level != "DEBUG":
        for chatty in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(chatty).setLevel(_THIRD_PARTIES_LEVEL)


class _Lines(logging.Formatter):
    """Leaves the line to structlog, which is imported with the first one."""

    def __init__(self, form: LogFormat, colors: bool) -> None:
        super().__init__()
        self._form: LogFormat = form
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        formatter = _json_formatter() if self._form == "json" else _console_formatter(self._colors)
        return formatter.format(record)


@functools.cache
def _console_formatter(colors: bool) -> ProcessorFormatter:
    from structlog.dev import Column, ConsoleRenderer
    from structlog.stdlib import ProcessorFormatter

    level_colors = ConsoleRenderer.get_default_level_styles(colors)
    dim, reset = ("\x1b[2m", "\x1b[0m") if colors else ("", "")

    def colored(key: str, value: object) -> str:
        return f"{level_colors.get(str(value).lower(), '')}{value}{reset}"

    def plain(key: str, value: object) -> str:
        return str(value)

    def field(key: str, value: object) -> str:
        return f"{dim}{key}={_value_text(value)}{reset}"

    columns = [
        Column("time", plain),
        Column("level", colored),
        Column("logger", plain),
        Column("event", plain),
        Column("", field),
    ]
    # The tracebacks stay those of `logging`.
    return ProcessorFormatter(
        processors=[_for_people, ConsoleRenderer(columns=columns, sort_keys=False)],
        pass_foreign_args=True,
        keep_exc_info=True,
        keep_stack_info=True,
    )


@functools.cache
def _json_formatter() -> ProcessorFormatter:
    from structlog.processors import JSONRenderer
    from structlog.stdlib import ProcessorFormatter

    return ProcessorFormatter(processors=[_for_programs, JSONRenderer()], pass_foreign_args=True)


def _for_people(_: object, __: str, event: Any) -> dict[str, object]:
    """Return what a line says. What the event quotes can neither forge a line nor fill a disk."""
    record: logging.LogRecord = event["_record"]
    return {
        "time": logging.Formatter().formatTime(record),
        "level": record.levelname,
        "logger": f"{record.name}:",
        "event": one_line(str(event["event"]), _MOST_CHARACTERS),
        **_fields_of(event),
    }


def _for_programs(_: object, __: str, event: Any) -> dict[str, object]:
    record: logging.LogRecord = event["_record"]
    line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "event": one_line(str(event["event"]), _MOST_CHARACTERS),
        **_fields_of(event),
    }
    if exc_info := event.get("exc_info"):
        line["traceback"] = _shortened(logging.Formatter().formatException(exc_info))
    if stack := event.get("stack_info"):
        line["stack"] = _shortened(stack)
    return line


def _fields_of(event: Any) -> dict[str, object]:
    """Return the fields of where the line was written, and of the error that it tells."""
    arguments, (_, error, _) = event["positional_args"], event.get("exc_info") or (None,) * 3
    fields = _bound_now()
    for told in (*(arguments if isinstance(arguments, tuple) else ()), error):
        if isinstance(told, BaseException):
            fields = getattr(told, _MARK, {}) | fields
    first = {key: fields[key] for key in _FIRST if key in fields}
    return first | fields


def _bound_now() -> dict[str, object]:
    fields = ((key, value() if callable(value) else value) for key, value in _fields.get().items())
    return {key: value for key, value in fields if value is not None}


def _value_text(value: object) -> str:
    """Write a field's value for people: of a list the first few, and how many more there are."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        named = ",".join(map(str, value[:_MOST_NAMED]))
        more = len(value) - _MOST_NAMED
        value = f"{named}+{more}" if more > 0 else named
    return one_line(str(value), _MOST_VALUE_CHARACTERS)


def _shortened(text: str) -> str:
    """Return a traceback with its begin and its end, whatever an error's text quotes."""
    text = text.encode("utf-8", "replace").decode()
    half = _MOST_TRACEBACK_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n…\n{text[-half:]}"
