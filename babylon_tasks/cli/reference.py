"""The page docs/cli.md: `python -m babylon_tasks.cli.reference > docs/cli.md` writes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from babylon_tasks.cli import babylon

_HEAD = """\
# The command line

Every command and its options. `python -m babylon_tasks.cli.reference` makes this page from the
commands themselves, and a test compares the two. `-h` and `--help` show the same. All settings come
from the environment: see [settings.md](settings.md).

| exit code | meaning |
|---|---|
| 0 | the command did what it should |
| 2 | a person must change something; one line on standard error says what |
| 130 | Ctrl-C or SIGTERM ended the command |"""
_EXAMPLE = "Example: "


def reference() -> str:
    """Return the whole page as Markdown."""
    context = click.Context(babylon, info_name="babylon")
    return "\n".join([_HEAD, *(line for each in _commands(context) for line in _section(each))])


def _commands(context: click.Context) -> Iterator[click.Context]:
    """Yield each command of the group, and of the groups in it, that is no group itself."""
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        child = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            yield from _commands(child)
        else:
            yield child


def _section(context: click.Context) -> Iterator[str]:
    command = context.command
    words = " ".join(command.collect_usage_pieces(context)[1:])  # after [OPTIONS]
    yield f"\n## `{context.command_path}{' ' * bool(words)}{words}`\n"
    text, _, example = inspect.cleandoc(command.help or "").partition(_EXAMPLE)
    yield text.strip()
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        yield "\n| option | meaning |\n|---|---|"
    for names, meaning in records:
        yield f"| `{_cell(names)}` | {_cell(meaning)} |"
    yield f"\n```\n{example.strip()}\n```"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    click.echo(reference())
