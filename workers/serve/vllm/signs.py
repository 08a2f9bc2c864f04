"""Whether tokens come out of a vLLM server: its own /health may say 200 of an engine that hangs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

# A first request compiles for 25 s on a CPU, and nothing comes out meanwhile.
STALL_SECONDS = 60.0

_TOKENS = re.compile(rb"^vllm:iteration_tokens_total_sum(?:\{.*\})? ([0-9.e+]+)$", re.M)


class Signs:
    """Signs of life of one server: the chunks and answers that came, or its own count of tokens."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._last_at = time.monotonic()
        self._tokens: float | None = None
        self.hangs = False  # until something comes, whether or not requests wait

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Count a request while it is under way."""
        if not self._in_flight:
            self._last_at = time.monotonic()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def came(self) -> None:
        """Note that something came."""
        self._last_at = time.monotonic()
        self.hangs = False

    def doubtful(self) -> bool:
        """Tell whether requests wait, and nothing came for long: then `counted` decides.

        A server that hangs stays so when nobody waits any more, else it would be the least busy.
        """
        silent = self._in_flight > 0 and time.monotonic() - self._last_at >= STALL_SECONDS
        return silent or self.hangs

    def counted(self, metrics: bytes) -> bool:
        """Tell by the server's metrics whether it has worked on tokens since the last count."""
        tokens = sum(float(value) for value in _TOKENS.findall(metrics))
        if tokens == self._tokens:
            self.hangs = True
            return False
        self._tokens = tokens
        self.came()
        return True
