"""The events of Celery's tasks, as Flower receives them, and what it makes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery
from celery.events.state import State


class Watcher:
    """Flower's half: the state of all tasks, and every event."""

    def __init__(self, app: Celery) -> None:
        self.app, self.state = app, State()
        self.events: list[dict[str, Any]] = []

    def hear(self, event: dict[str, Any]) -> None:
        self.events.append(dict(event))
        self.state.event(event)

    def rows(self) -> dict[str, Any]:
        return dict(self.state.tasks.items())

    def of(self, type_: str) -> dict[str, dict[str, Any]]:
        """The newest event of a type, by the id of its task."""
        return {event["uuid"]: event for event in self.events if event["type"] == type_}

    def types(self, task_id: str) -> list[str]:
        """The types of a task's events, each once in a row."""
        told = [event["type"] for event in self.events if event.get("uuid") == task_id]
        return [t for n, t in enumerate(told) if n == 0 or told[n - 1] != t]


@contextmanager
def watching(redis_url: str, prefix: str) -> Iterator[Watcher]:
    """Receive what is told from now on; `prefix` is that of the deployment's keys in Redis."""
    app = Celery("watcher", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport_options={"global_keyprefix": prefix},
        result_backend=redis_url,
        result_backend_transport_options={"global_keyprefix": "babylon:"},
    )
    watcher = Watcher(app)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": watcher.hear})
        over, ready = threading.Event(), threading.Event()

        def receive() -> None:
            with receiver.consumer_context(wakeup=False) as (connection, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield watcher
        finally:
            over.set()
            thread.join(10)
