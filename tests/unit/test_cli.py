"""The commands themselves: their help, what they import, and the page made from them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from babylon_tasks.cli import babylon, run
from babylon_tasks.cli.reference import reference
from babylon_tasks.errors import ServerUnavailable, UserError

ROOT = Path(__file__).parents[2]
# What only a command needs; each costs a tenth of a second or more.
HEAVY = ("pydantic", "psycopg", "rich", "redis", "httpx", "celery", "torch")


def _commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    top = click.Context(babylon, info_name="babylon")
    for name in babylon.list_commands(top):
        command = babylon.get_command(top, name)
        assert command is not None
        yield (name,), command
        if isinstance(command, click.Group):
            for below, each in command.commands.items():
                yield (name, below), each


COMMANDS = dict(_commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_an_example(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(babylon, [*path, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: babylon {' '.join(path)} ")
    if not isinstance(COMMANDS[path], click.Group):
        assert "Example:" in done.output


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    shown = " ".join(CliRunner().invoke(babylon, ["--help"]).output.split())
    for path, command in COMMANDS.items():
        assert command.help is not None
        first_line = command.help.partition("\n")[0]
        assert len(path) == 2 or f" {path[0]} {first_line}" in shown


def test_help_imports_nothing_that_only_a_command_needs() -> None:
    program = (
        "import sys\n"
        "from babylon_tasks.cli import babylon\n"
        "babylon(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Commands:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_there_where_the_settings_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "1")
    assert CliRunner().invoke(babylon, ["--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("set THIS"), 2, "set THIS\n"),
        (ServerUnavailable("cannot reach it"), 2, "cannot reach it\n"),
        (click.UsageError("no such option"), 2, "Error: no such option\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
)
def test_what_ends_a_command(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise raised

    assert run(command) == code
    assert capsys.readouterr().err == said


def test_a_command_ends_with_its_own_code_or_with_0() -> None:
    assert run(lambda: 2) == 2
    assert run(lambda: None) == 0


def test_docs_cli_is_made_from_the_commands() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == reference() + "\n", "python -m babylon_tasks.cli.reference > docs/cli.md"


BABYLON = [sys.executable, "-c", "from babylon_tasks.cli import main; main()"]


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `babylon windows list | head`: click's own code for it is 1."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*BABYLON, "--help"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("argument", ["--help", "nonsense"])
def test_a_closed_output_is_no_traceback(closed: str, argument: str) -> None:
    command = f"{shlex.join([*BABYLON, argument])} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if argument == "--help" else 2)
    assert "Traceback" not in done.stdout + done.stderr
