"""Tells when a GPU has no memory left."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Tell whether CUDA has no memory left, whoever asked for it.

    torch's allocator has a class for it. CUDA itself (a context, a kernel to load) and its
    libraries, of which each thread makes a handle of its own, have a message.
    """
    messages = ("out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in messages)
