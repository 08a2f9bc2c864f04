"""`babylon models chat`."""

from __future__ import annotations

import sys

import click

from babylon_tasks.errors import BabylonError
from babylon_tasks.local.chat import Chat
from babylon_tasks.settings import load_settings


@click.command()
@click.argument("model", required=False)
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The endpoint; SERVE_API_KEY is its key.",
)
@click.option("--message", help="Ask this alone, print the answer, and end.")
def chat(model: str | None, url: str, message: str | None) -> None:
    """Talk with a model that the endpoint serves; without a name, with that of MODEL_NAME.

    Names are as in `GET /v1/models`: `babylon-agent`, `babylon-agent@12`, `babylon-agent-v1.0.12`.
    An empty line or Ctrl-D ends it.

    Example: babylon models chat babylon-agent@12 --message "Buy or wait?"
    """
    settings = load_settings()
    talk = Chat(url, model or settings.model_name, settings.serve_api_key)
    if message is not None:
        _answer(talk, message)
        return
    while text := _line():
        try:
            _answer(talk, text)
        except BabylonError as error:  # the talk goes on
            click.echo(str(error), err=True)


def _line() -> str:
    """Read what a person types; nothing ends the talk."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False)
    return sys.stdin.readline().strip()


def _answer(talk: Chat, text: str) -> None:
    for piece in talk.say(text):
        click.echo(piece, nl=False)
    click.echo()
    click.echo(f"— {talk.answered_by}", err=True)
