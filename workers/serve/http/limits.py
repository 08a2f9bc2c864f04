"""How much one request may cost, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request; `requests` and `answer_seconds` are SERVE_REQUESTS and SERVE_SECONDS.

    `body_seconds` is for the whole body to come, `send_seconds` for a client to read what was sent.
    """

    requests: int = 256
    answer_seconds: float = 300.0
    body_bytes: int = 8 * 2**20
    body_seconds: float = 30.0
    send_seconds: float = 30.0
