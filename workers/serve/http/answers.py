"""An answer as the client is to see it."""

from __future__ import annotations

from typing import Any

from workers.serve.backend import Version
from workers.serve.http.requests import Shown

_NEVER_SHOWN = ("prompt_logprobs", "kv_transfer_params")


def show(answer: dict[str, Any], version: Version, shown: Shown) -> bool:
    """Write `model`, and take out what the client did not ask for; an answer or a chunk.

    Returns:
        Whether anything is left to be sent.
    """
    answer["model"] = version.name
    for name in _NEVER_SHOWN:
        answer.pop(name, None)
    if not shown.token_ids:
        answer.pop("prompt_token_ids", None)
    choices = answer.get("choices") or []
    for choice in choices:
        if not shown.token_ids:
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
        if not shown.logprobs and choice.get("logprobs") is not None:
            choice["logprobs"] = None
    if not shown.usage:
        answer.pop("usage", None)
        return bool(choices)
    return True
