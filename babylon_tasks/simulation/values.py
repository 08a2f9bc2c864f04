"""Seeded random numbers, and ids, times and JSON as the app writes them."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime, timedelta
from typing import Any

Json = dict[str, Any]

EPOCH_MS = 1_704_067_200_000  # the app's snowflakes count from 2024-01-01
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def seeded(*parts: object) -> random.Random:
    """Return a random generator whose seed is made of the parts."""
    return random.Random(":".join(map(str, parts)))  # noqa: S311 - repeatable, not secret


def snowflake(unix_ms: int, worker: int, sequence: int) -> str:
    """Make an id in the app's format: 41 bits of time, 10 of worker, 12 of sequence."""
    return str((unix_ms - EPOCH_MS) << 22 | worker << 12 | sequence)


def unix_ms(at: datetime) -> int:
    """Return the milliseconds from 1970 to a naive UTC time."""
    return milliseconds(at - datetime(1970, 1, 1))


def milliseconds(length: timedelta) -> int:
    """Return the whole milliseconds of a length of time."""
    return length // timedelta(milliseconds=1)


def number(value: float) -> float:
    """Round to cents; a whole number has no fraction, as JavaScript writes it."""
    value = round(value, 2)
    return int(value) if value == int(value) else value


def dump(value: object) -> str:
    """Write JSON as `JSON.stringify` does: compact, UTF-8, only lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
