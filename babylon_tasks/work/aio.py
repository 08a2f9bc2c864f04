"""One event loop for each thread of a process, which lives as long as the thread.

litellm keeps connections for each loop: a new loop for every task would leak them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_CANCEL_ROUNDS = 5  # cancelling a task may start others, and a group's end reaches its parent


class _ThreadRunner(threading.local):
    """A thread's runner, and the process that made it: a fork must not use its parent's runner."""

    runner: asyncio.Runner | None = None
    pid = 0


_current = _ThreadRunner()


def _new_loop() -> asyncio.AbstractEventLoop:
    # Not epoll: a fork shares its list of sockets, so a child that closes its copy of the loop
    # would remove the parent's sockets from it.
    return asyncio.SelectorEventLoop(selectors.PollSelector())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, but keep the loop for the next call.

    A stop (SystemExit or KeyboardInterrupt, from SIGTERM or Ctrl-C) ends the loop as well. Errors
    of the coroutine are passed on.
    """
    if _current.runner is None or _current.pid != os.getpid():
        _current.runner, _current.pid = asyncio.Runner(loop_factory=_new_loop), os.getpid()
    try:
        # In the caller's context, which the log's fields are in, and not in that of the first call.
        return _current.runner.run(work, context=contextvars.copy_context())
    except (SystemExit, KeyboardInterrupt):
        ended, _current.runner = _current.runner, None
        _end(ended)
        raise


def _end(runner: asyncio.Runner) -> None:
    """Let every task clean up, then close the loop."""
    loop = runner.get_loop()
    for _ in range(_CANCEL_ROUNDS):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    runner.close()


async def all_done(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all, even if some fail; return their results in order, or raise the first error.

    For work that costs money once it has begun, such as a question to a judge.
    """
    results: list[T] = []
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


async def with_ticks(
    work: Coroutine[Any, Any, T], every_seconds: float, tick: Callable[[], None]
) -> T:
    """Await the work, and call `tick` every so often; if that raises, cancel the work and raise."""
    ticks = asyncio.create_task(_call_forever(every_seconds, tick))
    working = asyncio.create_task(work)
    try:
        await asyncio.wait((ticks, working), return_when=asyncio.FIRST_COMPLETED)
        if ticks.done():
            ticks.result()  # raises
        return await working
    finally:
        ticks.cancel()
        working.cancel()
        await asyncio.wait((ticks, working))


async def _call_forever(every_seconds: float, tick: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        tick()
