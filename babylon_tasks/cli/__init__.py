"""The command line: `babylon --help`.

A person's mistake ends with one line on standard error and exit code 2, never with a traceback.
"""

from __future__ import annotations

import sys

import click

from babylon_tasks.cli.demo import demo
from babylon_tasks.cli.doctor import doctor
from babylon_tasks.cli.judge import judge
from babylon_tasks.cli.migrate import migrate
from babylon_tasks.cli.models import models
from babylon_tasks.cli.status import status
from babylon_tasks.cli.train import train
from babylon_tasks.cli.up import up
from babylon_tasks.cli.windows import windows
from babylon_tasks.errors import BabylonError
from babylon_tasks.logs import configure_logging
from babylon_tasks.settings import load_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="babylon-tasks")
def babylon() -> None:
    """Keep training an agent from what its copies did in production."""


for command in (demo, up, migrate, windows, train, models, judge, status, doctor):
    babylon.add_command(command)


def main() -> None:
    """The `babylon` program."""
    sys.exit(run(lambda: babylon(standalone_mode=False)))


def run(command: object) -> int:
    """Run a command and turn what it raises into an exit code."""
    assert callable(command)
    try:
        configure_logging(load_settings().log_level)
        code = command()
    except BabylonError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    return code if isinstance(code, int) else 0
