"""The harness does what it says; else a fault test that passes means nothing."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import redis

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.store import heads, lineages
from tests.chaos.fleet import Fleet, Kill
from tests.chaos.injection import Injection, injecting
from tests.chaos.proxy import Proxy
from tests.chaos.recovery import percentile
from tests.chaos.schedule import kill_schedule
from tests.chaos.servers import Servers
from tests.chaos.verdict import Verdict, judge
from tests.chaos.world import ROOT, World
from tests.rows import one, query

pytestmark = pytest.mark.slow


@contextmanager
def echo_server() -> Iterator[int]:
    """Run a server that sends back what it gets, and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1024):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with echo_server() as port:
        made = Proxy("127.0.0.1", port)
        yield made
        made.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3)


def test_a_cut_proxy_is_a_black_hole_until_it_is_restored(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"1")
        assert old.recv(1) == b"1"
        proxy.cut()
        old.sendall(b"2")
        with connect(proxy) as new:
            new.sendall(b"3")
            for each in (old, new):
                with pytest.raises(TimeoutError):
                    each.recv(1)
            proxy.restore()
            assert (old.recv(1), new.recv(1)) == (b"2", b"3")


def test_a_dropped_proxy_refuses_until_it_is_restored(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"1")
        assert old.recv(1) == b"1"
        proxy.drop()
        assert old.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.restore()
    with connect(proxy) as new:
        new.sendall(b"2")
        assert new.recv(1) == b"2"


@pytest.mark.parametrize("end", ["kill", "stop_immediate", "restart"])
def test_postgres_comes_back_on_the_same_port_with_what_was_committed(
    world: World, servers: Servers, end: str
) -> None:
    world.add_windows(1)
    port = servers.postgres.port
    with psycopg.connect(servers.postgres.url) as held:
        getattr(servers.postgres, end)()
        with pytest.raises(psycopg.OperationalError):
            held.execute("SELECT 1")
    servers.postgres.start()
    assert servers.postgres.port == port
    assert one(world.context, "SELECT count(*) AS n FROM trajectories")["n"] == 3


def test_postgres_asks_for_the_password(servers: Servers) -> None:
    wrong = servers.postgres.url.replace("babylon:", "babylon:no")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(wrong)


def test_a_frozen_redis_does_not_answer_until_it_is_thawed(servers: Servers) -> None:
    servers.redis.start()
    with redis.Redis.from_url(servers.redis.url, socket_timeout=0.3, retry=None) as client:
        client.set("kept", "1")
        servers.redis.freeze()
        with pytest.raises(redis.TimeoutError):
            client.get("kept")
        servers.redis.thaw()
        assert client.get("kept") == b"1"


def test_a_killed_redis_has_lost_everything(servers: Servers) -> None:
    servers.redis.start()
    with redis.Redis.from_url(servers.redis.url) as client:
        client.set("lost", "1")
        servers.redis.kill()
        servers.redis.start()
        assert client.get("lost") is None


def python(code: str, *injections: Injection) -> subprocess.CompletedProcess[str]:
    """Run a few lines in a process with these injections."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **injecting(*injections, python_path=str(ROOT))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


CALL = (
    "from babylon_tasks.records.windows import parse_window_id as f; print(f('2025-01-15T10:00'))"
)


def test_an_injection_kills_once(tmp_path: Path) -> None:
    harm = Injection(
        "babylon_tasks.records.windows.parse_window_id", "kill", once=tmp_path / "once"
    )
    first, second = python(CALL, harm), python(CALL, harm)
    assert first.returncode == -signal.SIGKILL
    assert "injected: kill before" in first.stderr
    assert (second.returncode, second.stdout) == (0, "2025-01-15 10:00:00+00:00\n")


@pytest.mark.parametrize(
    ("harm", "ends"),
    [
        (Injection("babylon_tasks.records.windows.parse_window_id", "exit", "after"), 1),
        (Injection("babylon_tasks.records.windows.parse_window_id", "exit", text="01-15"), 1),
        (Injection("babylon_tasks.records.windows.parse_window_id", "exit", text="02-16"), 0),
        (
            Injection(
                "babylon_tasks.records.windows.parse_window_id", "exit", within="worker -Q cpu"
            ),
            0,
        ),
        (Injection("babylon_tasks.records.windows.parse_window_id", "sleep", seconds=0.01), 0),
    ],
)
def test_an_injection_is_done_where_it_is_asked_for(harm: Injection, ends: int) -> None:
    assert python(CALL, harm).returncode == ends


def test_an_injection_reaches_methods_coroutines_and_builtins() -> None:
    full = {"error": "builtins.OSError", "arguments": (28, "No space left on device")}
    method = Injection("babylon_tasks.work.leases.LeaseKeeper.beat", "raise", **full)  # type: ignore[arg-type]
    done = python("from babylon_tasks.work.leases import LeaseKeeper as K; K.beat(None)", method)
    assert "[Errno 28] No space left on device" in done.stderr
    coroutine = Injection("babylon_tasks.scoring.stage.score_claimed", "raise", **full)  # type: ignore[arg-type]
    call = "from babylon_tasks.scoring import stage as s; asyncio.run(s.score_claimed(0, 0, {}))"
    assert "[Errno 28]" in python(f"import asyncio; {call}", coroutine).stderr
    assert python("import os; os.fsync(0)", Injection("os.fsync", "exit")).returncode == 1


def test_a_mistyped_injection_is_refused() -> None:
    with pytest.raises(AttributeError):
        Injection("babylon_tasks.records.windows.parse_widow_id", "kill")


def test_a_role_is_killed_whole_and_started_again(tmp_path: Path) -> None:
    two = "import subprocess; subprocess.run(['sleep', '60'])"
    fleet = Fleet(tmp_path, dict(os.environ))
    try:
        first = fleet.start("two", "-c", two, keep_running=True, restart_seconds=0.2)
        _soon(lambda: len(fleet.children("two")) == 1)
        (child,) = fleet.children("two")
        fleet.freeze("two")
        fleet.thaw("two")
        fleet.kill("two")
        assert set(fleet.kills[0].pids) == {first, child}
        _soon(lambda: fleet.lives("two") and fleet.pid("two") != first)
        assert fleet.terminate("two") == -signal.SIGTERM
        time.sleep(0.5)
        assert not fleet.lives("two")
    finally:
        fleet.stop_all()


def _soon(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_roles_train_windows_and_one_that_is_cut_off_does_not(world: World) -> None:
    windows = world.add_windows(5)
    alone = world.own_links()
    world.start("gpu1", links=alone)
    world.wait(lambda: bool(world.fleet.children("gpu1")))
    alone.cut()
    for name in ("cpu1", "gpu2", "beat"):
        world.start(name)
    world.wait(world.settled)
    verdict = world.invariants()
    assert (verdict.lost, verdict.twice) == ([], [])
    named = query(world.context, "SELECT unnest(window_ids) AS w FROM rl.steps")
    assert sorted(row["w"] for row in named) == sorted(windows)
    assert world.fleet.terminate("beat") == 0


def test_a_verdict_sees_what_is_wrong(world: World) -> None:
    (window,) = world.add_windows(1)
    named = f"babylon-agent/{window}"
    with world.context.database.transaction() as tx:
        for step, token in ((1, 7), (3, 6)):
            tx.execute(
                """INSERT INTO rl.steps (model_name, step, token, trainer, window_ids, trajectories,
                       trainable_tokens, started_at)
                   VALUES ('babylon-agent', %s, %s, 'noop', %s, 3, 0, now())""",
                [step, token, [window]],
            )
        tx.execute("INSERT INTO rl.heads VALUES ('babylon-agent', 1, 0, 'none')")
        tx.execute(
            """INSERT INTO rl.leases (resource, holder, token, expires_at)
               VALUES ('model/babylon-agent', 'host:1', 8, now() + interval '1 hour')"""
        )
        tx.execute(
            """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder)
               VALUES ('babylon-agent', %s, 8, 'train', 'host:1')""",
            [window],
        )
        tx.execute(
            """INSERT INTO trained_models (id, "modelId", version, "baseModel", status,
                   "storagePath", "updatedAt")
               VALUES ('1', 'babylon-agent-v1', 'v1', 'none', 'training', '', now())"""
        )
    soon = world.settings.model_copy(update={"lease_seconds": 0.1, "sweep_seconds": 0.1})
    verdict = judge(replace(world.context, settings=soon), world.expected)
    assert (verdict.lost, verdict.twice) == ([named], [named])
    assert verdict.broken == [
        "host:1 still holds model/babylon-agent",
        f"the attempt of host:1 to train {window} is open",
        "babylon-agent: rl.steps is not dense from 1 on: [1, 3]",
        "babylon-agent: the token of step 3 is not above its predecessor's",
        "babylon-agent: step 3 is not on the way to the head, step 1, and not given up",
        f"babylon-agent: step 1 trained {window}, whose row does not say so",
        "babylon-agent-v1 is still `training` in trained_models",
    ]


def test_a_verdict_sees_what_the_dead_left(world: World) -> None:
    """In the folder for temporary files; what a living process uses there is not left."""
    left = world.tmp / "babylon-tasks-0" / "steps" / "left"
    used = left.with_name("used")
    for folder in (left, used, world.tmp / "babylon-step-x"):
        folder.mkdir(parents=True)
    held = os.open(used, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    broken = world.verdict().broken
    os.close(held)
    assert broken == [
        f"{folder} was left by a process that is dead"
        for folder in (left, world.tmp / "babylon-step-x")
    ]


def test_a_verdict_follows_the_tree(world: World) -> None:
    """Its head was reset from step 2 to step 1, and it was forked at the step that was given up."""
    once, again, late = world.add_windows(3)
    with world.context.database.transaction() as tx:
        lineages.ensure(tx, world.settings, "host:1")
        heads.ensure(tx, world.context.lineage)
        fork = Lineage(
            "fork",
            "none",
            False,
            None,
            created_by="a person",
            forked_from="babylon-agent",
            forked_step=2,
        )
        lineages.create(tx, fork)
        for name, step, parent, window in (
            ("babylon-agent", 1, 0, once), ("babylon-agent", 2, 1, again),
            ("babylon-agent", 3, 1, again), ("babylon-agent", 4, 3, late), ("fork", 3, 2, late),
        ):  # fmt: skip
            tx.execute(
                """INSERT INTO rl.steps (model_name, step, parent_step, token, trainer, window_ids,
                       trajectories, trainable_tokens, started_at, given_up_at)
                   VALUES (%s, %s, %s, nextval('rl.lease_tokens'), 'noop', %s, 3, 0, now(),
                           CASE WHEN %s = 2 THEN now() END)""",
                [name, step, parent, [window], step],
            )
            tx.execute(
                """INSERT INTO rl.windows (model_name, window_id, state, trained_step)
                   SELECT model_name, %s, 'trained', %s FROM rl.heads
                    WHERE model_name = %s OR %s <= 2
                       ON CONFLICT (model_name, window_id) DO UPDATE
                      SET trained_step = excluded.trained_step""",
                [window, step, name, step],
            )
            tx.execute("UPDATE rl.heads SET step = %s WHERE model_name = %s", [step, name])
    assert world.verdict() == Verdict()
    query(world.context, """UPDATE rl.steps SET window_ids = %s WHERE model_name = 'fork'
                         RETURNING 1""", [once, late])  # fmt: skip
    found = world.verdict()
    assert (found.lost, found.twice) == ([], [f"fork/{once}"])
    query(world.context, "UPDATE rl.heads SET step = 2 WHERE model_name = 'fork' RETURNING 1")
    found = world.verdict()
    assert (found.lost, found.twice) == ([f"fork/{late}"], [f"fork/{once}"])
    assert "fork: step 3 is not on the way to the head, step 2, and not given up" in found.broken


def test_recovery_is_from_the_kill_of_the_holder_to_the_next_attempt(world: World) -> None:
    with world.context.database.transaction() as tx:
        for token, holder, after, outcome in (
            (1, "host:10", 0, "lost"),
            (2, "host:11", 9, "lost"),
            (3, "host:12", 20, "done"),
        ):
            tx.execute(
                """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder,
                       started_at, ended_at, outcome)
                   VALUES ('babylon-agent', 'w', %s, 'train', %s, '2025-01-01Z'::timestamptz
                           + make_interval(secs => %s), now(), %s)""",
                [token, holder, after, outcome],
            )
    start = one(world.context, "SELECT min(started_at) AS at FROM rl.attempts")["at"]
    kills = [
        Kill(start + timedelta(seconds=second), what, pids)
        for second, what, pids in (
            (2, "cpu1", (99,)), (3, "redis", ()), (4, "cpu2", (9, 10)), (12, "postgres", ())
        )
    ]  # fmt: skip
    assert world.recoveries(kills) == [5.0, 8.0]
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.99) == 4.0


def test_a_seed_gives_the_same_kills() -> None:
    planned = kill_schedule(7, 600)
    assert planned == kill_schedule(7, 600) != kill_schedule(8, 600)
    pairs = itertools.pairwise(planned)
    pauses = [later.after_seconds - earlier.after_seconds for earlier, later in pairs]
    assert all(5 <= pause <= 20 for pause in pauses)
