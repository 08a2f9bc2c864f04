"""What a client is told where a forward pass failed."""

from __future__ import annotations

import logging

import torch

from babylon_tasks.text import place_of
from workers.serve.backend import ApiError

log = logging.getLogger(__name__)


def as_api_error(error: BaseException) -> ApiError:
    """Return the error for the client; the log has what it was."""
    if isinstance(error, ApiError):
        return error
    log.warning("the embedded engine failed a batch: %s", place_of(error), exc_info=error)
    if _out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return ApiError(
            503,
            "out of memory: ask for shorter answers, with shorter prompts, or again later",
            headers={"retry-after": "1"},
        )
    return ApiError(500, "the engine failed on this request; see the endpoint's log")


def _out_of_memory(error: BaseException) -> bool:
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return full or "can't allocate memory" in str(error)
