"""Errors in the shape that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

from workers.serve.backend import ApiError

_RATE = "rate_limit_exceeded"


def error_object(error: ApiError) -> dict[str, Any]:
    """Return the object that the client gets, as a body or as the last event of a stream."""
    if error.status == 429:
        kind = "requests" if error.code == _RATE else str(error.code)
    else:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }
