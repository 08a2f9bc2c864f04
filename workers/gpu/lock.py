"""Whose turn it is on a GPU: a lock held until the trainer process ends, and a queue before it.

Several models share a node's GPUs through these files, in the order in which they asked. A process
that waits has a ticket: a file that it touches as long as it waits. The worker that owns the
holder's trainer sees the ticket and ends that trainer, after its step or while it is idle. Then the
first in the queue takes the lock.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from babylon_tasks.scratch import own_folder

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # between two tries of a process that waits
SIGN_SECONDS = 2.0  # between its signs of life
STALE_SECONDS = 10.0  # a ticket that nobody touched for so long belongs to a dead or frozen process
REMOVE_SECONDS = 60.0


def lock_path(gpu: str) -> Path:
    """Return the path of a GPU's lock file, from its UUID, MIG id or number.

    Raises:
        OSError: The folder for temporary files cannot be written, or is another user's.
    """
    name = re.sub(r"[^A-Za-z0-9.-]", "_", gpu)
    name = name if name.startswith(("GPU-", "MIG-")) else f"gpu-{name}"
    return own_folder() / f"{name}.lock"


def hold_gpu(gpus: Sequence[str], on_wait: Callable[[], None]) -> tuple[str, FileLock]:
    """Wait for one of the GPUs and lock it, before CUDA starts: the first of them if it is free.

    The kernel gives the lock back when the process ends, however it ends. `on_wait` is called about
    every two seconds while others hold all of them. Returns the GPU and its lock.

    Raises:
        OSError: The folder for temporary files cannot be written, or is another user's.
    """
    name = f"{time.monotonic_ns():020d}-{secrets.token_hex(4)}"  # one clock for all processes
    tickets = {gpu: _queue(gpu) / name for gpu in gpus}
    waits, logged_at = 0, time.monotonic()
    try:
        while True:
            for ticket in tickets.values():
                ticket.parent.mkdir(mode=0o700, exist_ok=True)
                ticket.touch()
            for gpu in gpus:
                if name <= min(waiting(gpu), default=name) and (lock := _take(gpu)):
                    return gpu, lock
            if waits == 0 or time.monotonic() - logged_at >= SIGN_SECONDS:
                if waits % 30 == 0:
                    log.warning("another trainer holds %s; waiting for it", " and ".join(gpus))
                waits, logged_at = waits + 1, time.monotonic()
                on_wait()
            time.sleep(LOOK_SECONDS)
    finally:
        for ticket in tickets.values():
            ticket.unlink(missing_ok=True)


def waiting(gpu: str) -> list[str]:
    """List the tickets of the living processes that wait for the GPU, the first one first."""
    tickets = []
    with contextlib.suppress(OSError):  # no queue yet; and no fault of it may cost a step
        for ticket in _queue(gpu).iterdir():
            with contextlib.suppress(FileNotFoundError):  # its owner's turn has come meanwhile
                age_seconds = time.time() - ticket.stat().st_mtime
                if age_seconds < STALE_SECONDS:
                    tickets.append(ticket.name)
                elif age_seconds > REMOVE_SECONDS:
                    ticket.unlink()
    return sorted(tickets)


def _queue(gpu: str) -> Path:
    return lock_path(gpu).with_suffix(".queue")


def _take(gpu: str) -> FileLock | None:
    lock = FileLock(lock_path(gpu))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
