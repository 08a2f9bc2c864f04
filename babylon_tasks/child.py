"""Child processes that end when we end."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel, in a child before exec, to send this signal when the parent ends (Linux).

    For the kernel the parent is the thread that started the child. So start the child from a thread
    that lives as long as the process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, number)
