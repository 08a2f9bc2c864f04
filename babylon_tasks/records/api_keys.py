"""Keys of the endpoint: their form, and what is stored of them."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from babylon_tasks.errors import UserError

SETTINGS_KEY = "SERVE_API_KEY"  # the name of that setting's key
_PREFIX = "bk-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's row, with what was used of it today (UTC); limits that are None are none."""

    name: str
    key_hash: bytes
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    created_by: str = ""
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    requests_today: int = 0
    tokens_today: int = 0


def new_key() -> str:
    """Return a random key of 256 bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: bytes) -> bytes:
    """Return what is stored of a key; of a random one, nobody can find the key by it."""
    return hashlib.sha256(key).digest()


def require_name(name: str) -> None:
    """Check a new key's name.

    Raises:
        UserError: It is not one.
    """
    if not _NAME.fullmatch(name) or name == SETTINGS_KEY:
        raise UserError(
            f"{name!r} is no name for a key: letters, digits, `-`, `_` and `.`, 63 at most, and "
            f"not {SETTINGS_KEY}"
        )
