"""Release 0.1.0 and this one side by side on one database and one Redis, during an upgrade."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from celery import Celery

from babylon_tasks.settings import QUEUES
from babylon_tasks.work.context import Context
from tests.acceptance.conftest import Deployment
from tests.old_release import extract_old_release
from tests.paths import path_to_head
from tests.rows import add_trajectory, add_window, hours_ago, one, query, states

CELERY = ("celery", "-A", "babylon_tasks")
# What 0.1.0 says of a lineage whose head was moved.
REFUSAL = (
    "ERROR workers.tasks: train: model babylon-agent was started from (a newer release moved its "
    "head: upgrade this worker), BASE_MODEL is none: "
)
ROLES = {
    "cpu": (*CELERY, "worker", "-Q", "cpu", "-c", "1"),
    "gpu": (*CELERY, "worker", "-Q", "gpu"),
    "beat": (*CELERY, "beat"),
}


@pytest.fixture(scope="session")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the code of release 0.1.0."""
    folder = tmp_path_factory.mktemp("old_release")
    extract_old_release(folder)
    return folder


class Release:
    """The roles of one release: a worker of each kind, and beat."""

    def __init__(self, deployment: Deployment, name: str, prefix: str, **env: str) -> None:
        self._deployment = deployment
        self._name = name
        self._prefix = prefix  # of its keys in Redis: 0.1.0 has none
        self._env = env
        self._roles: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Start the roles."""
        for role, command in ROLES.items():
            name = () if role == "beat" else ("-n", f"{self._name}-{role}@%h")
            self._roles[role] = self._deployment.start(*command, *name, env=self._env)

    def wait_until_ready(self) -> None:
        """Wait for both workers to listen."""
        ready = [f"{self._name}-{queue}@{socket.gethostname()} ready." for queue in QUEUES]
        self._deployment.wait(lambda: all(line in self._deployment.logs() for line in ready))

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Let the workers take no message for a while."""
        self._control("cancel_consumer")
        yield
        self._control("add_consumer")

    def done(self) -> Counter[str]:
        """Return how many attempts of these workers at each stage are done."""
        pids = [process.pid for role in self._roles for process in self._processes(role)]
        found = query(
            self._deployment.context,
            """SELECT stage FROM rl.attempts
                WHERE split_part(holder, ':', 2)::int = ANY (%s) AND outcome = 'done'""",
            pids,
        )
        return Counter(row["stage"] for row in found)

    def kill(self) -> None:
        """Kill the roles, without a wait for the end of their tasks."""
        for process in [process for role in self._roles for process in self._processes(role)]:
            process.kill()

    def _control(self, command: str) -> None:
        """Send the workers a command of Celery's remote control, and wait for both answers."""
        app = Celery(broker=self._deployment.redis_url)
        app.conf.broker_transport_options = {"global_keyprefix": self._prefix}
        for queue in QUEUES:
            name = [f"{self._name}-{queue}@{socket.gethostname()}"]
            send = getattr(app.control, command)
            assert send(queue, destination=name, reply=True, timeout=30, limit=1), name

    def _processes(self, role: str) -> list[psutil.Process]:
        """Return a role's first process, and those that it has started."""
        leader = psutil.Process(self._roles[role].pid)
        return [leader, *leader.children(recursive=True)]


@pytest.fixture
def deployment(
    fresh_database: str, make_context: Callable[..., Context], redis_url: str, tmp_path: Path
) -> Iterator[Deployment]:
    """An empty database without our tables and an empty Redis, and nothing running yet."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    folder = tmp_path / "run"
    folder.mkdir()
    made = Deployment(make_context(database_url=fresh_database), redis_url, folder)
    made.env |= {"SWEEP_SECONDS": "0.5", "PRODUCE_SECONDS": "0.5"}
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.timeout(240)  # six roles start
def test_old_and_new_workers_side_by_side(deployment: Deployment, old_release: Path) -> None:
    """Roles of 0.1.0 train, and go on while the database is migrated and ours start beside it."""
    old = Release(deployment, "old", "", PYTHONPATH=str(old_release))
    new = Release(deployment, "new", deployment.key(""))
    migrated = deployment.run("babylon", "migrate", env={"PYTHONPATH": str(old_release)})
    assert migrated.returncode == 0, migrated.stderr
    old.start()
    for count in (1, 2):
        add_windows(deployment, 1)
        deployment.wait(
            lambda count=count: list(states(deployment.context).values()) == ["trained"] * count
        )
    add_windows(deployment, 4)
    babylon(deployment, "migrate")
    new.start()
    new.wait_until_ready()
    deployment.wait(lambda: trained(deployment))
    # Without this, whose beat looks first after a step may be the same one each time.
    for works, idle in ((new, old), (old, new)):
        before = works.done()
        with idle.idle():
            add_windows(deployment, 1)
            deployment.wait(lambda: trained(deployment))
        assert works.done() - before == Counter(score=1, train=1)
    check(deployment)

    # Whoever trains the next step, it does not serve before a person says so.
    babylon(deployment, "models", "rollback", "--why", "an experiment")
    served = position(deployment)["published_step"]
    add_windows(deployment, 2)
    deployment.wait(lambda: trained(deployment))
    assert position(deployment)["published_step"] == served
    babylon(deployment, "models", "resume", "--why", "it was none")
    deployment.wait(lambda: position(deployment)["published_step"] == position(deployment)["step"])
    statuses = 'SELECT status FROM trained_models ORDER BY "createdAt" DESC'
    deployed, *others = [row["status"] for row in query(deployment.context, statuses)]
    assert (deployed, set(others)) == ("deployed", {"ready"})

    babylon(deployment, "lineages", "fork", "babylon-agent@2", "bolder")
    add_windows(deployment, 1)
    deployment.wait(lambda: trained(deployment, "bolder"))
    with new.idle():
        babylon(deployment, "models", "reset", "1", "--why", "an experiment")
        given_up = query(
            deployment.context, "SELECT step FROM rl.steps WHERE given_up_at IS NOT NULL"
        )
        named = [word for row in given_up for word in ("--step", str(row["step"]))]
        babylon(deployment, "windows", "retry", *named)
        add_windows(deployment, 1)
        deployment.wait(lambda: REFUSAL in deployment.logs())
    deployment.wait(lambda: trained(deployment, "bolder"))
    check(deployment, "bolder")
    assert all(REFUSAL in line for line in deployment.logs().splitlines() if " ERROR " in line)

    old.kill()
    add_windows(deployment, 1)
    deployment.wait(lambda: trained(deployment, "bolder"))
    check(deployment, "bolder")


def babylon(deployment: Deployment, *command: str) -> None:
    """Run a command of the new release."""
    done = deployment.call("babylon", *command)
    assert done.returncode == 0, done.stderr


def position(deployment: Deployment) -> dict[str, int]:
    """Return the head of MODEL_NAME, and what serves."""
    name = deployment.context.lineage.name
    return one(deployment.context, "SELECT * FROM rl.heads WHERE model_name = %s", name)


def add_windows(deployment: Deployment, count: int) -> None:
    """Add windows, each an hour before the last one, with an agent whose trace cannot be read."""
    for _ in range(count):
        known = one(deployment.context, 'SELECT count(DISTINCT "windowId") AS n FROM trajectories')
        window = hours_ago(2 + known["n"])
        add_window(deployment.context, window)
        add_trajectory(deployment.context, window, "agent-bad", stepsJson='[{"llmCalls": [')


def windows(deployment: Deployment) -> list[str]:
    found = query(deployment.context, 'SELECT DISTINCT "windowId" AS id FROM trajectories')
    return sorted(row["id"] for row in found)


def trained(deployment: Deployment, *forks: str) -> bool:
    """Tell whether nobody works, and every window led to the heads of MODEL_NAME and the forks."""
    names = (deployment.context.lineage.name, *forks)
    held = query(deployment.context, "SELECT FROM rl.leases WHERE expires_at > clock_timestamp()")
    return not held and all(
        trained_on_the_way(deployment, name) == windows(deployment) for name in names
    )


def trained_on_the_way(deployment: Deployment, lineage: str) -> list[str]:
    path = path_to_head(deployment.context, lineage)
    return sorted(window for step in path for window in step["window_ids"])


def check(deployment: Deployment, *forks: str) -> None:
    """Nothing is lost, twice or blamed, and nobody was surprised."""
    context = deployment.context
    assert trained(deployment, *forks)
    for name in (context.lineage.name, *forks):
        numbers = [
            row["step"]
            for row in query(
                context, "SELECT step FROM rl.steps WHERE model_name = %s ORDER BY step", name
            )
        ]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert query(context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    assert query(context, "SELECT * FROM rl.attempts WHERE outcome <> 'done'") == []
    set_aside = query(
        context,
        """SELECT DISTINCT window_id FROM rl.quarantine
            WHERE COALESCE(model_name, 'babylon-agent') = 'babylon-agent' ORDER BY 1""",
    )
    assert [row["window_id"] for row in set_aside] == windows(deployment)
    assert "Traceback" not in deployment.logs()
