"""What the broker lets through: our own messages, and nothing that Celery could stumble over."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import hostile, message
from workers.broker import Unreadable, _screen, screened

# Well-formed: refused later, by Celery or the task, or harmless without what was odd in them.
PASSES = {
    "compressed nonsense",
    "compression is a list",
    "unknown task",
    "a built-in task",
    "celery.chord",
    "wrong types",
    "none for a list",
    "a number for a list",
    "too few arguments",
    "kwarg self",
    "SQL",
    "NUL in a window",
    "an older release's arguments",
    "unknown lineage",
    "expired",
    "stamps",
}


def test_hostile_messages_are_refused_or_well_formed(tmp_path: Path) -> None:
    passed = set()
    for name, data in hostile(tmp_path / "unpickled").items():
        with contextlib.suppress(Unreadable):
            screened(data)
            passed.add(name)
    assert passed == PASSES
    assert not (tmp_path / "unpickled").exists()


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        screened(data)


def sent(**options: Any) -> bytes:
    """What Celery itself lays into Redis for a task of ours."""
    app = Celery("test", broker="memory://")
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        channel = producer.channel
        laid: list[Any] = []
        channel._put = lambda queue, payload, **_: laid.append(payload)
        app.send_task(
            "babylon.score", args=[["2025-01-15T10:00"]], queue="cpu", producer=producer, **options
        )
    return json.dumps(laid[0]).encode()


@pytest.mark.parametrize(
    "options", [{}, {"expires": 60}, {"time_limit": 60, "soft_time_limit": 50}, {"priority": 3}]
)
def test_celerys_own_messages_pass_unchanged(options: dict[str, Any]) -> None:
    data = sent(**options)
    before, after = json.loads(data), json.loads(screened(data))
    assert base64.b64decode(after["body"]) == base64.b64decode(before["body"])
    assert after["properties"] == before["properties"]
    told = {name for name, value in before["headers"].items() if value}
    assert told <= set(after["headers"])


def test_a_header_that_we_do_not_know_is_left_out() -> None:
    """A newer Celery may add some; the pool would pickle them, however deep."""
    data = json.dumps(message(headers={"novel": [[[]]]})).encode()
    assert "novel" not in json.loads(screened(data))["headers"]


def test_only_queues_of_tasks_are_screened() -> None:
    assert _screen(b"our:", None) is None
    assert _screen(b"our:", [b"our:cpu", b"garbage"]) is None
    assert _screen(b"our:", [b"our:gpu\x06\x163", b"garbage"]) is None  # of another priority
    assert _screen(b"our:", [b"our:1234.reply.celery.pidbox", b"garbage"]) is not None


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_app_takes_its_messages_through_it_and_no_other_app_does(scheme: str) -> None:
    """In a process of its own, as a scheduler has it that is itself a Celery application."""
    code = f"""
import logging
from celery import Celery
from babylon_tasks.celery import app
from workers.broker import Transport
ours, theirs = app.connection_for_read(), Celery(broker="{scheme}://h:1/0").connection_for_read()
assert isinstance(ours.transport, Transport), ours.transport
assert isinstance(ours.clone().transport, Transport)
assert not isinstance(theirs.transport, Transport), theirs.transport
assert ours.as_uri() == "{scheme}://:**@127.0.0.1:1/0", ours.as_uri()
Celery().log.setup(logging.INFO)
assert all("babylon" not in type(handler.formatter).__module__ for handler in logging.root.handlers)
"""
    environment = {
        **os.environ,
        "REDIS_URL": f"{scheme}://:password@127.0.0.1:1/0",
        "DATABASE_URL": "postgresql://u:password@127.0.0.1:1/nowhere",  # which nobody asks
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
