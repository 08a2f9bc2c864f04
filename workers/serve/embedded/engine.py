"""The thread that generates: one batch for each base model, one token of each in turn."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from workers.serve.backend import BackendAway
from workers.serve.embedded.base import Base
from workers.serve.embedded.batch import Batch
from workers.serve.embedded.faults import as_api_error
from workers.serve.embedded.request import Outbox, Request, fail
from workers.serve.embedded.together import TogetherBatch

STALLED_SECONDS = 60.0

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Engine:
    """Answers requests in a thread of its own, until `close`."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Request | Callable[[], None] | None] = queue.SimpleQueue()
        self._outbox = Outbox()
        self._batches: dict[Base, Batch | TogetherBatch] = {}
        self._waiting: dict[Base, deque[Request]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedded-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Take a request; its pieces come into `request.pieces`.

        Raises:
            BackendAway: The engine is closed.
        """
        self._inbox.put(request)
        if self._closed or not self._thread.is_alive():  # it may have looked for the last time
            raise BackendAway("the embedded engine has ended")

    def run(self, job: Callable[[], _T]) -> Future[_T]:
        """Run something between two tokens: what needs a network for itself."""
        future: Future[_T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    future.set_exception(error)

        self._inbox.put(work)
        return future

    def alive(self) -> bool:
        """Tell whether the thread lives and, if rows run, tokens came out in the last minute."""
        if not self._thread.is_alive():
            return False
        stalled = time.monotonic() - self._outbox.sent_at > STALLED_SECONDS
        return not (stalled and self._busy())

    def close(self) -> None:
        """End the thread at its next token; requests that run fail."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join(timeout=STALLED_SECONDS)

    def _busy(self) -> bool:
        waiting = any([*self._waiting.values()])
        return waiting or any([batch.rows for batch in [*self._batches.values()]])

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                try:
                    self._receive()
                    self._step()
                    self._outbox.flush()
                except BaseException as error:  # noqa: BLE001 - the engine outlives any request
                    self._fail_all(error)
        self._fail_all(BackendAway("the embedded engine has ended"))

    def _receive(self) -> None:
        """Take what came in; wait for something where nothing runs."""
        wait = not self._batches
        while True:
            try:
                self._accept(self._inbox.get(block=wait))  # no name: it would be kept while waiting
            except queue.Empty:
                return
            wait = False

    def _accept(self, item: Request | Callable[[], None] | None) -> None:
        if isinstance(item, Request):
            self._waiting.setdefault(item.base, deque()).append(item)
            if item.base not in self._batches:
                self._outbox.sent_at = time.monotonic()
                kind = TogetherBatch if item.base.layers is None else Batch
                self._batches[item.base] = kind(item.base, self._outbox)
        elif item is not None:
            item()

    def _step(self) -> None:
        """Let each base model generate one token; one without requests may be let go of."""
        for base in [*self._batches]:
            batch, waiting = self._batches[base], self._waiting[base]
            batch.step(waiting)
            if not batch.rows and not waiting:
                del self._batches[base], self._waiting[base]

    def _fail_all(self, error: BaseException) -> None:
        requests = [request for waiting in self._waiting.values() for request in waiting]
        requests += [row.request for batch in self._batches.values() for row in batch.rows]
        self._batches, self._waiting = {}, {}
        while not self._inbox.empty() and self._closed:
            item = self._inbox.get()
            if isinstance(item, Request):
                requests.append(item)
            elif item is not None:
                item()
        fail(requests, as_api_error(error), self._outbox)
        self._outbox.flush()
