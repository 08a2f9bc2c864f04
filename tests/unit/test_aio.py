"""One event loop a thread and process, that stays until it is stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from babylon_tasks.work import aio


async def current() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def failing(error: BaseException) -> NoReturn:
    await asyncio.sleep(0)
    raise error


def test_a_thread_keeps_its_loop() -> None:
    first = aio.run(current())
    assert aio.run(current()) is first
    assert not first.is_closed()


def test_another_thread_has_another_loop() -> None:
    mine = aio.run(current())
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(aio.run, current()).result()
        assert pool.submit(aio.run, current()).result() is theirs
    assert theirs is not mine
    assert aio.run(current()) is mine


def test_threads_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)

    async def meet() -> None:
        together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: aio.run(meet()), range(3)))


def test_an_error_leaves_the_loop() -> None:
    first = aio.run(current())
    with pytest.raises(ZeroDivisionError):
        aio.run(failing(ZeroDivisionError()))
    assert aio.run(current()) is first


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_closes_the_loop_and_the_next_run_has_a_new_one(stop: type[BaseException]) -> None:
    ended: list[str] = []

    async def others() -> None:
        async def long() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")

        kept = asyncio.create_task(long())
        await asyncio.sleep(0)
        assert not kept.done()
        await failing(stop())

    first = aio.run(current())
    with pytest.raises(stop):
        aio.run(others())
    assert first.is_closed()
    assert ended == ["cleaned up"]
    second = aio.run(current())
    assert second is not first
    assert aio.run(current()) is second


_FORK = """
import asyncio, os, time
from babylon_tasks.work import aio

async def current():
    await asyncio.to_thread(time.sleep, 0)
    return asyncio.get_running_loop()

parents = aio.run(current())
reads, writes = os.pipe()
child = os.fork()
if child == 0:
    own = aio.run(current())
    ok = own is not parents and aio.run(current()) is own
    # The parent's is gone in this process: what becomes of it there must not reach the parent.
    del parents
    os.write(writes, b"ok" if ok else b"not ok")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(os.read(reads, 100).decode())

async def woken_by_a_thread():
    return await asyncio.wait_for(current(), 5)

assert aio.run(woken_by_a_thread()) is parents
print("parent ok")
"""


def test_a_fork_has_a_loop_of_its_own_and_leaves_its_parents_alone() -> None:
    """With epoll, the child's end of its copy took the parent's wake-up off the shared list."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK],
        cwd=Path(aio.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n") == ["ok", "parent ok", ""], done.stderr


def test_a_run_within_a_run_is_refused() -> None:
    async def outer() -> None:
        inner = current()
        try:
            aio.run(inner)
        finally:
            inner.close()

    with pytest.raises(RuntimeError):
        aio.run(outer())


def test_all_done_returns_in_order() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert aio.run(aio.all_done(map(after, (3, 0, 2, 1)))) == [3, 0, 2, 1]
    assert aio.run(aio.all_done([])) == []


def test_all_done_lets_the_others_end_before_it_raises_the_first_error_itself() -> None:
    ended: list[str] = []

    async def patient(name: str) -> None:
        await asyncio.sleep(0.01)
        ended.append(name)

    works = [patient("a"), failing(LookupError("first")), patient("b"), failing(OSError("late"))]
    with pytest.raises(LookupError, match="first"):
        aio.run(aio.all_done(works))
    assert sorted(ended) == ["a", "b"]


def test_all_done_that_is_cancelled_cancels_its_own() -> None:
    cancelled: list[bool] = []

    async def patient() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(True)

    async def main() -> None:
        both = asyncio.create_task(aio.all_done([patient(), patient()]))
        await asyncio.sleep(0.01)
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both

    aio.run(main())
    assert cancelled == [True, True]
