"""A running batch: rows join it at the next token, and leave it when they end.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from workers.serve.embedded.base import Base
from workers.serve.embedded.cache import Part, merged, new_cache
from workers.serve.embedded.faults import as_api_error
from workers.serve.embedded.request import Outbox, Request, Row, fail
from workers.serve.embedded.sampler import choose

_Placed = tuple[Row, Any, int]  # with the cache that holds it, and its row there

MOST_ROWS = 64
# Tokens of new prompts, with padding, between two tokens of the rows that run. More at once wait
# longer and gain nothing: a long prompt keeps the processor busy alone, and needs no mask.
PREFILL_TOKENS = 512


class Batch:
    """The rows of one base model; the rows of one version stand side by side.

    Rows are padded on the left, so that all end at the same position of the cache.
    """

    def __init__(self, base: Base, outbox: Outbox) -> None:
        self._base, self._outbox = base, outbox
        self.rows: list[Row] = []
        self._cache: Any = None
        self._pads: list[int] = []

    def step(self, waiting: deque[Request]) -> None:
        """Let rows leave and join, then add one token to each; errors end the rows concerned."""
        admitted = self._admit(waiting)
        try:
            new = self._prefill(admitted) if admitted else []
        except Exception as error:  # noqa: BLE001 - whatever a network raises ends these requests
            fail(admitted, as_api_error(error), self._outbox)
            new = []
        try:
            self._arrange(new)
            if self.rows:
                self._decode()
        except Exception as error:  # noqa: BLE001
            fail([row.request for row in self.rows], as_api_error(error), self._outbox)
            self.rows, self._cache = [], None

    def _admit(self, waiting: deque[Request]) -> list[Request]:
        """Take requests in their order, as far as rows and memory allow; one always fits."""
        running = [row for row in self.rows if not row.done]
        rows = len(running)
        longest = max((row.request.longest for row in running), default=0)
        admitted: list[Request] = []
        while waiting:
            request = waiting[0]
            if not request.cancelled:
                more = rows + len(request.rows)
                longest = max(longest, request.longest)
                prefill = max(len(each.prompt) for each in (*admitted, request))
                full = more > MOST_ROWS or more * longest > self._base.cache_tokens
                others = [*running[:1], *(row for each in admitted[:1] for row in each.rows)]
                adapters = [row.request.adapter for row in others]
                if rows and (full or not self._base.goes_with(request.adapter, adapters)):
                    break
                if admitted and prefill * (len(admitted) + 1) > PREFILL_TOKENS:
                    break
                admitted.append(request)
                rows = more
            waiting.popleft()
        return admitted

    def _prefill(self, requests: Sequence[Request]) -> list[_Placed]:
        """Run the new prompts, and add the first token to each of their rows."""
        assert self._base.layers is not None
        requests = sorted(requests, key=lambda request: id(request.adapter))
        lengths = [len(request.prompt) for request in requests]
        longest = max(lengths)
        tokens_bt = torch.full((len(requests), longest), self._base.padding)
        for row, request in enumerate(requests):
            tokens_bt[row, longest - lengths[row] :] = torch.tensor(request.prompt)
        starts = [length - longest for length in lengths]
        self._base.overlay.use([request.adapter for request in requests])
        cache = new_cache(self._base.layers)
        mask_bt = _mask([-start for start in starts], longest)
        logits_bv = self._base.forward(tokens_bt, mask_bt, starts, cache)
        sources = [at for at, request in enumerate(requests) for _ in request.rows]
        rows = [row for request in requests for row in request.rows]
        self._take(rows, logits_bv[sources])
        return [(row, cache, at) for row, at in zip(rows, sources, strict=True)]

    def _arrange(self, new: Sequence[_Placed]) -> None:
        """Put the rows that go on and the new ones together."""
        held = [(row, self._cache, at) for at, row in enumerate(self.rows)]
        going = [each for each in (*held, *new) if not each[0].done]
        if going == held:
            return
        going.sort(key=lambda each: id(each[0].request.adapter))
        self.rows = [row for row, _, _ in going]
        if not going:
            self._cache = None
            return
        length = max(row.length for row in self.rows) - 1  # the last token is not in it yet
        parts: dict[int, Part] = {}
        for to, (_, cache, at) in enumerate(going):
            part = parts.setdefault(id(cache), Part(cache, [], []))
            part.rows.append(at)
            part.to.append(to)
        self._cache = merged([*parts.values()], length)
        self._pads = [length + 1 - row.length for row in self.rows]

    def _decode(self) -> None:
        self._base.overlay.use([row.request.adapter for row in self.rows])
        tokens_bt = torch.tensor([[row.last_token] for row in self.rows])
        starts = [row.length - 1 for row in self.rows]
        mask_bt = _mask(self._pads, self._pads[0] + self.rows[0].length)
        self._take(self.rows, self._base.forward(tokens_bt, mask_bt, starts, self._cache))

    def _take(self, rows: Sequence[Row], logits_bv: torch.Tensor) -> None:
        chosen = choose(logits_bv, [row.sampling for row in rows])
        for row, each in zip(rows, chosen, strict=True):
            if not row.done:
                row.take(each, self._outbox)


def _mask(pads: Sequence[int], length: int) -> torch.Tensor | None:
    """Return what is no padding [B, T]; None where nothing is padded."""
    if not any(pads):
        return None
    return (torch.arange(length) >= torch.tensor(pads)[:, None]).long()
