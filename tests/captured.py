"""Answers as the endpoint remembers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from babylon_tasks.records.call_hashes import prompt_hash, response_hash
from babylon_tasks.records.captured import CapturedCall
from babylon_tasks.work.context import Context
from workers.serve.capture import Capture

_PATIENCE_SECONDS = 20.0


def answer(
    user: str = "Buy?",
    response: str = "BUY",
    logprobs: Sequence[float] = (-0.5, -0.25),
    **changes: Any,
) -> CapturedCall:
    """An answer to "You trade." and a question."""
    messages = [{"role": "system", "content": "You trade."}, {"role": "user", "content": user}]
    fields: dict[str, Any] = {
        "at": datetime.now(UTC),
        "lineage": "babylon-agent",
        "step": 1,
        "agent": "agent-0",
        "prompt_hash": prompt_hash(messages),
        "response_hash": response_hash(response),
        "backend": "embedded",
        "finish_reason": "stop",
        "token_ids": tuple(range(11, 11 + len(logprobs))),
        "logprobs": tuple(logprobs),
        "prompt_tokens": 9,
        "latency_ms": 120,
    }
    return CapturedCall(**fields | changes)


def remember(context: Context, answers: Iterable[CapturedCall]) -> None:
    """Let an endpoint remember these, and end."""
    capture = Capture(context.settings)
    for each in answers:
        capture.add(each)
    capture.close()
    assert not capture.counts.dropped


def wait_until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)
