"""A request in the engine, its rows, and the pieces of answers that go back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from workers.serve.backend import ApiError
from workers.serve.embedded.answer_text import AnswerText
from workers.serve.embedded.base import Base
from workers.serve.embedded.lora import Adapter
from workers.serve.embedded.sampler import Chosen, Sampling

_QUIET_SECONDS = 5.0  # of a stream without text, after which its tokens are sent all the same


class Piece(NamedTuple):
    """A part of one answer: text that is certain, and the tokens since the piece before."""

    row: int
    text: str
    tokens: list[Chosen]
    finish_reason: str | None


@dataclass(eq=False, slots=True)
class Request:
    """One prompt with its rows; pieces, or an `ApiError`, come into `pieces`."""

    base: Base
    adapter: Adapter | None
    prompt: list[int]
    max_tokens: int
    streamed: bool
    rows: list[Row] = field(default_factory=list)
    cancelled: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    pieces: asyncio.Queue[Piece | ApiError] = field(default_factory=asyncio.Queue)

    def add_row(self, sampling: Sampling, text: AnswerText) -> None:
        """Add one answer to it."""
        self.rows.append(Row(self, len(self.rows), sampling, text))

    @property
    def longest(self) -> int:
        """Tokens that a row may come to, its prompt included."""
        return len(self.prompt) + self.max_tokens


class Row:
    """One answer in the making."""

    def __init__(self, request: Request, index: int, sampling: Sampling, text: AnswerText) -> None:
        self.request, self.index, self.sampling = request, index, sampling
        self.length = len(request.prompt)
        self.last_token = 0
        self._ended = False
        self._text, self._shown = text, ""
        self._left = request.max_tokens
        self._tokens: list[Chosen] = []
        self._sent_at = time.monotonic()

    @property
    def done(self) -> bool:
        """It needs no further token."""
        return self._ended or self.request.cancelled

    def take(self, chosen: Chosen, outbox: Outbox) -> None:
        """Add a token, and send what can be sent by it."""
        if not math.isfinite(chosen.logprob):
            fail([self.request], ApiError(500, "the model computes what is not finite"), outbox)
            return
        self._tokens.append(chosen)
        self.last_token = chosen.token
        self.length += 1
        self._left -= 1
        reason = None
        if chosen.token in self.request.base.chat.stops:
            reason = "stop"
        else:
            self._shown += self._text.push(chosen.token)
            if self._text.stopped:
                reason = "stop"
            elif self._left == 0:
                reason = "length"
        if reason:
            self._ended = True
            self._shown += self._text.end()
            if self._text.stopped:
                reason = "stop"
        now = time.monotonic()
        due = self._shown or now - self._sent_at > _QUIET_SECONDS  # a sign of life
        if reason or (self.request.streamed and due):
            self._sent_at = now
            outbox.put(self.request, Piece(self.index, self._shown, self._tokens, reason))
            self._shown, self._tokens = "", []


class Outbox:
    """Pieces on their way to the event loops that wait for them; one call a loop and token."""

    def __init__(self) -> None:
        self.sent_at = time.monotonic()
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Request, Piece | ApiError]]] = {}

    def put(self, request: Request, item: Piece | ApiError) -> None:
        """Add one."""
        self._items.setdefault(request.loop, []).append((request, item))

    def flush(self) -> None:
        """Send all; called after each token."""
        self.sent_at = time.monotonic()
        items, self._items = self._items, {}
        for loop, some in items.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_deliver, some)


def _deliver(items: Sequence[tuple[Request, Piece | ApiError]]) -> None:
    for request, item in items:
        request.pieces.put_nowait(item)


def fail(requests: Sequence[Request], error: ApiError, outbox: Outbox) -> None:
    """End requests with an error."""
    for request in requests:
        if not request.cancelled:
            request.cancelled = True
            outbox.put(request, error)
