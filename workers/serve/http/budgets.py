"""What is left of a key's limits: requests of a minute, tokens of a day."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from babylon_tasks.records.api_keys import ApiKey
from workers.serve.backend import ApiError


@dataclass(frozen=True, slots=True)
class Use:
    """Requests and tokens, of prompts and answers, that are not yet in Postgres."""

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.requests + other.requests, self.tokens + other.tokens)


class Budget:
    """A key's bucket of requests, and its tokens of today: of all endpoints, as Postgres knows."""

    def __init__(self, key: ApiKey) -> None:
        self._key = key
        self._requests_left = float(key.requests_per_minute or 0)
        self._filled_at = time.monotonic()
        self._unwritten = Use()

    def renew(self, key: ApiKey) -> None:
        """Take over the key's row as it is now."""
        if key.requests_per_minute != self._key.requests_per_minute:
            self._requests_left = float(key.requests_per_minute or 0)
        self._key = key

    def take_request(self) -> None:
        """Count a request.

        Raises:
            ApiError: One of the limits is reached.
        """
        limit = self._key.tokens_per_day
        if limit is not None and self._key.tokens_today + self._unwritten.tokens >= limit:
            raise ApiError(
                429,
                f"the key {self._key.name!r} has used its {limit} tokens of this day (UTC)",
                code="insufficient_quota",
                # Only tomorrow will do; OpenAI's clients would ask again at once.
                headers={"retry-after": "3600", "x-should-retry": "false"},
            )
        per_minute = self._key.requests_per_minute
        if per_minute is not None:
            self._take_from_bucket(per_minute)
        self._unwritten += Use(requests=1)

    def _take_from_bucket(self, per_minute: int) -> None:
        now = time.monotonic()
        filled = self._requests_left + (now - self._filled_at) * per_minute / 60
        self._requests_left, self._filled_at = min(float(per_minute), filled), now
        if self._requests_left < 1:
            seconds = math.ceil((1 - self._requests_left) * 60 / per_minute)
            raise ApiError(
                429,
                f"the key {self._key.name!r} may send {per_minute} requests a minute",
                code="rate_limit_exceeded",
                headers={"retry-after": str(seconds)},
            )
        self._requests_left -= 1

    def spend(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        self._unwritten += Use(tokens=tokens)

    def take_use(self) -> Use:
        """Return what is to be written, and forget it."""
        use, self._unwritten = self._unwritten, Use()
        return use

    def give_back(self, use: Use) -> None:
        """Take back what could not be written."""
        self._unwritten += use
