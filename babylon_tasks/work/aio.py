"""One event loop a process (a thread, where there are several), for as long as it lives.

litellm keeps its connections by loop: a new loop for every task would leave them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_ENDINGS = 5  # a stop goes from a task to its group, and on


class _Own(threading.local):
    """A thread's runner, and the process that made it: a fork must not use its parent's."""

    runner: asyncio.Runner | None = None
    pid = 0


_own = _Own()


def _new_loop() -> asyncio.AbstractEventLoop:
    # Not epoll, whose list of sockets a fork shares: the child's end of its parent's loop would
    # take the parent's own sockets off it.
    return asyncio.SelectorEventLoop(selectors.PollSelector())


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on a loop that stays. A stop (SIGTERM, Ctrl-C) ends the loop as well."""
    if _own.runner is None or _own.pid != os.getpid():
        _own.runner, _own.pid = asyncio.Runner(loop_factory=_new_loop), os.getpid()
    try:
        return _own.runner.run(work)
    except (SystemExit, KeyboardInterrupt):
        ended, _own.runner = _own.runner, None
        _end(ended)
        raise


def _end(runner: asyncio.Runner) -> None:
    """Let every task clean up. Whoever waits for the task that was stopped is stopped by it too."""
    loop = runner.get_loop()
    for _ in range(_ENDINGS):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    runner.close()


async def all_done(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all, also where some fail; return their results in order, or raise the first error.

    For work that is paid for once it has begun, such as a question to a judge.
    """
    results: list[T] = []
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results
