"""`babylon models chat`: a talk with the endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from babylon_tasks.cli import babylon
from tests import openai_server
from tests.acceptance.in_process import Done, call
from tests.openai_server import Stub

KEY = "sixteen-letters-or-more"
COMMAND = ("babylon", "models", "chat")
ERROR = {"error": {"message": "the model 'x' does not exist"}}


@pytest.fixture
def server() -> Iterator[Stub]:
    with openai_server.serving() as made:
        yield made


def streamed(*pieces: str, end: str = "data: [DONE]\n\n") -> str:
    """An answer as OpenAI's API streams it."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


def chat(folder: Path, *arguments: str, **env: str) -> Done:
    return call((*COMMAND, *arguments), {**os.environ, **env}, folder)


def test_one_question(server: Stub, tmp_path: Path) -> None:
    server.headers = {"x-babylon-version": "babylon-agent-v1.0.12"}
    server.reply = lambda _: (200, streamed("Buy", " now.\x1b[2J"))
    done = chat(tmp_path, "--url", server.url, "--message", "Buy or wait?", SERVE_API_KEY=KEY)
    assert done == Done(0, "Buy now.\ufffd[2J\n", "— babylon-agent-v1.0.12\n")
    assert (server.paths, server.keys) == ({"/v1/chat/completions"}, {f"Bearer {KEY}"})
    (asked,) = server.bodies
    assert (asked["model"], asked["stream"]) == ("babylon-agent", True)
    assert asked["messages"] == [{"role": "user", "content": "Buy or wait?"}]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((404, ERROR), "HTTP 404: the model 'x' does not exist"),
        ((502, "<html>"), "HTTP 502: <html>"),
        ((200, streamed("Buy", end="")), "broke off"),
        ((200, f"data: {json.dumps(ERROR)}\n\n"), "the answer failed: the model 'x' does not"),
        ((200, "data: 7\n\n"), "the answer cannot be read: 7"),
    ],
)
def test_what_is_no_answer_is_one_line(
    server: Stub, tmp_path: Path, reply: openai_server.Reply, says: str
) -> None:
    server.reply = lambda _: reply
    done = chat(tmp_path, "x", "--url", server.url, "--message", "?")
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_endpoint_that_is_not_there_is_one_line(server: Stub, tmp_path: Path) -> None:
    for url, says in (("http://127.0.0.1:1", "does not answer: "), ("ftp://host", "--url ftp://")):
        done = chat(tmp_path, "--url", url, "--message", "?")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert says in done.stderr


def test_a_talk_goes_on_after_an_error_and_forgets_it(server: Stub) -> None:
    def reply(body: dict[str, list[dict[str, str]]]) -> openai_server.Reply:
        failed = body["messages"][-1]["content"] == "second"
        return (500, "no") if failed else (200, streamed("Yes."))

    server.reply = reply
    typed = "first\nsecond\nthird\n\nnever sent\n"
    done = CliRunner().invoke(babylon, [*COMMAND[1:], "--url", server.url], input=typed)
    assert done.exit_code == 0
    assert "HTTP 500: no" in done.output
    asked = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert asked == [["first"], ["first", "Yes.", "second"], ["first", "Yes.", "third"]]
