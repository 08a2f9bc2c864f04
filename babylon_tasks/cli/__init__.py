"""The command line: `babylon --help`.

A person's mistake ends with one line on standard error and exit code 2, never with a traceback.
This module imports only what every command needs. A command's own module is imported when it runs.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from babylon_tasks.cli.lazy import LazyGroup
from babylon_tasks.edge import require_our_workers
from babylon_tasks.errors import BabylonError

_LOST_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO)

# The first line of each command's own help; a test compares them.
_SUMMARIES = {
    "demo": "Let agents trade, train a tiny model on it hour by hour with every real role, see it "
    "learn.",
    "doctor": "Check servers, migrations, packages, settings and data; exit 0 only if all is well.",
    "judge": "Check the judge that SCORING=ruler and SCORING=blend ask.",
    "keys": "Create and revoke the keys that the endpoint accepts, each with limits of its own.",
    "lineages": "Create, fork, change and pause the lineages that the workers serve.",
    "migrate": "Create or update our tables in DATABASE_URL; safe to repeat, and while the app "
    "runs.",
    "models": "List, compare, export and ask the versions of a model, and choose which one serves.",
    "scores": "Compare the scores of past windows with those of another recipe.",
    "serve": "Answer agents with the newest good version, over OpenAI's API, until Ctrl-C.",
    "simulate": "Play hours of the past in a market of our own, and write them as the app records "
    "them.",
    "status": "Show what runs now, what waits, who works, which version serves, and what today "
    "has cost.",
    "train": "Score, train and publish all that is due for a lineage, in this process, then end.",
    "up": "Run beat, a CPU worker, a GPU worker and Flower until Ctrl-C.",
    "windows": "List windows and make them due.",
}


@click.group(
    cls=LazyGroup,
    package=__name__,
    summaries=_SUMMARIES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="babylon-tasks")
def babylon() -> None:
    """Keep training an agent from what its copies did in production."""
    from babylon_tasks.logs import configure_logging
    from babylon_tasks.settings import load_settings

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)


def main() -> None:
    """Run the `babylon` program."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us (`>&-`)
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # agents have names that not every locale can write
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(lambda: babylon(standalone_mode=False))
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _output_lost(error)
    sys.exit(code)


def run(command: Callable[[], object]) -> int:
    """Run a command and turn what it raises into an exit code; other errors pass through."""
    stdout = sys.stdout
    try:
        require_our_workers()
        code = command()
    except BabylonError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # The pipe's reader has gone: click has put another object there, and would end with 1.
        return _output_lost(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
    except OSError as error:
        if error.filename is not None or error.errno not in _LOST_OUTPUT:
            raise
        return _output_lost(error)
    return code if isinstance(code, int) else 0


def _output_lost(error: OSError) -> int:
    """Say that standard output is full; a pipe whose reader has enough, as `head`, is no error."""
    with Path(os.devnull).open("w") as nothing:  # or Python would try, and complain, once more
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 0
    sys.stderr.write(f"cannot write the output: {error.strerror}\n")
    return 1
