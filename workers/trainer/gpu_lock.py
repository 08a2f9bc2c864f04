"""One trainer at a time per GPU: a file lock named after the GPU, held until the process ends."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

WAIT_SECONDS = 2.0  # between two signs of life while another trainer holds the GPU


def lock_path(slot: str) -> Path:
    """The lock file of a slot: a GPU's UUID, MIG id or number."""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", slot)
    name = name if name.startswith(("GPU-", "MIG-")) else f"gpu-{name}"
    return Path(tempfile.gettempdir()) / f"babylon-tasks-{os.getuid()}" / f"{name}.lock"


def hold_gpu(slot: str, on_wait: Callable[[], None]) -> FileLock:
    """Wait for the slot's lock and take it; call this before CUDA is touched.

    The kernel gives the lock back when the process ends, however it ends. `on_wait` is called
    about every two seconds while another process holds it.
    """
    path = lock_path(slot)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(path)
    waits = 0
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS if waits else 0)
        except Timeout:
            if waits % 30 == 0:
                log.warning("another trainer holds %s (lock %s); waiting for it", slot, path)
            waits += 1
            on_wait()
        else:
            return lock
