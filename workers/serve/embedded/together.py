"""Batches that start together, for models whose cache rows cannot join.

transformers' own loop knows the cache of every architecture: a window, or a state. Rows that end
are carried along until the last one ends; requests that arrive meanwhile wait.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from workers.serve.embedded.base import Base
from workers.serve.embedded.faults import as_api_error
from workers.serve.embedded.request import Outbox, Request, Row, fail
from workers.serve.embedded.sampler import choose

MOST_ROWS = 16


class TogetherBatch:
    """The same as a `Batch`, but a step generates whole answers."""

    def __init__(self, base: Base, outbox: Outbox) -> None:
        self._base, self._outbox = base, outbox
        self.rows: list[Row] = []

    def step(self, waiting: deque[Request]) -> None:
        """Answer the requests that wait, as far as rows and memory allow."""
        requests: list[Request] = []
        rows = longest = 0
        while waiting:
            request = waiting[0]
            if not request.cancelled:
                rows += len(request.rows)
                longest = max(longest, request.longest)
                full = rows > MOST_ROWS or rows * longest > self._base.cache_tokens
                adapters = [each.adapter for each in requests]
                if requests and (full or not self._base.goes_with(request.adapter, adapters)):
                    break
                requests.append(request)
            waiting.popleft()
        requests.sort(key=lambda request: id(request.adapter))
        self.rows = [row for request in requests for row in request.rows]
        try:
            if self.rows:
                self._generate(self.rows)
        except Exception as error:  # noqa: BLE001 - whatever a network raises ends these requests
            fail(requests, as_api_error(error), self._outbox)
        self.rows = []

    def _generate(self, rows: Sequence[Row]) -> None:
        prompts = [row.request.prompt for row in rows]
        longest = max(map(len, prompts))
        tokens_bt = torch.full((len(rows), longest), self._base.padding)
        mask_bt = torch.zeros_like(tokens_bt)
        for row, prompt in enumerate(prompts):
            tokens_bt[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_bt[row, longest - len(prompt) :] = 1
        self._base.overlay.use([row.request.adapter for row in rows])
        self._base.network.generate(
            input_ids=tokens_bt.to(self._base.device),
            attention_mask=mask_bt.to(self._base.device),
            logits_processor=LogitsProcessorList([_Chooser(rows, self._outbox)]),
            stopping_criteria=StoppingCriteriaList([_Ended(rows)]),
            generation_config=GenerationConfig(
                max_new_tokens=max(row.request.max_tokens for row in rows),
                pad_token_id=self._base.padding,
                do_sample=False,
            ),
        )


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Chooses each row's token, and leaves transformers no other."""

    def __init__(self, rows: Sequence[Row], outbox: Outbox) -> None:
        self._rows, self._outbox = rows, outbox

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = choose(scores, [row.sampling for row in self._rows])
        forced_bv = torch.full_like(scores, -torch.inf)
        for at, (row, each) in enumerate(zip(self._rows, chosen, strict=True)):
            forced_bv[at, each.token] = 0
            if not row.done:
                row.take(each, self._outbox)
        self._outbox.flush()
        return forced_bv


class _Ended(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)
