"""Progress bars of the libraries, which a process that ends at once must not regret."""

from __future__ import annotations

import threading


def need_no_semaphore() -> None:
    """Let tqdm lock its bars within this process only.

    Its own lock is a semaphore of the system, even if no bar is shown. A process that ends at once,
    or by a signal, leaves it behind, and Python warns of `leaked semaphore objects`.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
