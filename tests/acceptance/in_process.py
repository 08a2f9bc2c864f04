"""A command in the tests' own process, with an environment and a folder as a program has them."""

from __future__ import annotations

import io
import logging
import os
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import kombu.pools

from babylon_tasks import cli
from babylon_tasks.cli import progress_line
from babylon_tasks.settings import load_settings
from workers.gpu import visible

_LOGGERS = ("", "babylon_tasks", "workers", "celery", "celery.worker.strategy", "celery.app.trace")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. What its child processes wrote to standard error is not in it."""

    returncode: int
    stdout: str
    stderr: str


def call(
    arguments: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    silence_seconds: float = 3600.0,
) -> Done:
    """Run `babylon …` or `-m module` to its end, without a new interpreter and its imports.

    It tells no progress before `silence_seconds`: what a loaded machine makes slow says nothing
    more on standard error.
    """
    out, err = io.StringIO(), io.StringIO()
    patient = mock.patch.object(progress_line, "_SILENCE_SECONDS", silence_seconds)
    with patient, _process_state(env, folder), redirect_stdout(out), redirect_stderr(err):
        code = _run(arguments)
    return Done(code, out.getvalue(), err.getvalue())


def _run(arguments: Sequence[str]) -> int:
    try:
        if arguments[0] == "-m":
            with mock.patch.object(sys, "argv", list(arguments[1:])):
                runpy.run_module(arguments[1], run_name="__main__")
        else:
            assert arguments[0] == "babylon"
            # Click names the program by it, where pytest is run as a module.
            no_module = mock.patch.object(sys.modules["__main__"], "__package__", "")
            with no_module, mock.patch.object(sys, "argv", list(arguments)):
                cli.main()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return end.code or 0
    return 0


@contextmanager
def _process_state(env: Mapping[str, str], folder: Path) -> Iterator[None]:
    """What a command changes in its process, or reads from it once, is its own."""
    here, term = Path.cwd(), signal.getsignal(signal.SIGTERM)
    handlers = logging.root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    logging.root.handlers = []  # else `configure_logging` would close those of pytest
    os.chdir(folder)
    _forget()
    try:
        with mock.patch.dict(os.environ, env, clear=True):
            yield
    finally:
        os.chdir(here)
        signal.signal(signal.SIGTERM, term)
        logging.root.handlers = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        _forget()


def _forget() -> None:
    """Everything that is made once a process from its environment."""
    load_settings.cache_clear()
    visible.installed_gpus.cache_clear()
    sys.modules.pop("babylon_tasks.celery", None)
    kombu.pools.reset()  # by broker, whatever the database
