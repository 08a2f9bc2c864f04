"""Every role on the Redis that hosts give: over TLS, as a user of few rights, or refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from babylon_tasks.local.ports import free_port
from babylon_tasks.work.context import Context
from tests.acceptance.conftest import Deployment
from tests.certificates import Authority
from tests.redis_server import RedisServer, redis_server
from tests.rows import add_window, hours_ago, query, states

pytestmark = pytest.mark.slow

CELERY = ("celery", "-A", "babylon_tasks")
CPU = (*CELERY, "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "1")
GPU = (*CELERY, "worker", "-Q", "gpu", "-n", "gpu@%h")
BEAT = (*CELERY, "beat")
FLOWER = (*CELERY, "flower")
PASSWORD = "s3cret@/:?#[]%&+ é"
RIGHTS = ("~babylon:*", "&*", "+@all", "-@dangerous")  # as docs/deploying.md has them


class Secured:
    """A server with TLS, on which the user `app` has few rights, and the URL of that user."""

    def __init__(self, server: RedisServer, authority: Authority) -> None:
        self.server = server
        login = f"app:{quote(PASSWORD, safe='')}@"
        base = server.url(login, 3, "rediss").replace("127.0.0.1", "localhost")
        self.url = f"{base}?ssl_ca_certs={authority.file}"
        self.unverified = base
        self.grant(*RIGHTS)

    def grant(self, *rights: str) -> None:
        """Give the user these rights and no others."""
        run = self.server.admin.execute_command
        run("ACL", "SETUSER", "app", "reset", "on", f">{PASSWORD}", *rights)
        run("ACL", "LOG", "RESET")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    files = authority.sign("localhost")
    tls = ["--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)]
    tls += ["--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "no"]
    with redis_server(folder, *tls, plain=False) as server:
        yield Secured(server, authority)


@pytest.fixture
def deployment(context: Context, secured: Secured, tmp_path: Path) -> Iterator[Deployment]:
    """On that server."""
    secured.grant(*RIGHTS)
    secured.server.admin.flushall()
    folder = tmp_path / "run"
    folder.mkdir()
    made = Deployment(context, secured.url, folder)
    yield made
    made.stop()


@pytest.mark.slow
def test_all_roles_work_over_tls_as_a_user_of_few_rights(
    deployment: Deployment, secured: Secured
) -> None:
    window = hours_ago(2)
    add_window(deployment.context, window)
    port = free_port()
    deployment.start(*FLOWER, f"--port={port}", env={"FLOWER_UNAUTHENTICATED_API": "true"})
    roles = [deployment.start(*role) for role in (CPU, GPU, BEAT)]
    published = "SELECT FROM rl.heads WHERE step > 0 AND step = published_step"
    deployment.wait(lambda: bool(query(deployment.context, published)))
    assert states(deployment.context) == {window: "trained"}
    deployment.wait(lambda: len(query(deployment.context, "SELECT FROM rl.canaries")) == 2)
    pages = [
        httpx.get(f"http://127.0.0.1:{port}/{page}", timeout=20).text
        for page in ("broker", "workers", "tasks", "metrics", "api/workers?refresh=1")
    ]
    assert 'babylon_up{server="redis"} 1.0' in pages[3]
    assert "cpu@" in pages[4]
    lengths = httpx.get(f"http://127.0.0.1:{port}/api/queues/length").json()["active_queues"]
    assert {each["name"] for each in lengths} == {"cpu", "gpu"}
    doctor = deployment.call("babylon", "doctor", "--json")
    redis = _finding(doctor.stdout, "Redis")
    assert (redis["ok"], redis["detail"].split(":")[0]) == (True, "Redis at localhost")
    assert json.loads(deployment.call("babylon", "status", "--json").stdout)["queues"]
    pong = deployment.run(*CELERY, "inspect", "ping", "--json")
    assert pong.returncode == 0, pong.stderr
    log = secured.server.admin.execute_command("ACL", "LOG")
    assert {entry[b"object"] for entry in log} <= {b"info"}  # doctor's, which can do without
    assert f"transport:   rediss://app:**@localhost:{secured.server.port}/3" in deployment.logs()
    _demote_for_a_while(secured.server)
    add_window(deployment.context, hours_ago(3))
    deployment.wait(lambda: states(deployment.context).get(hours_ago(3)) == "trained")
    assert [role.poll() for role in roles] == [None, None, None]
    assert "s3cret" not in "".join([*pages, deployment.logs(), pong.stdout, doctor.stdout])


def _demote_for_a_while(server: RedisServer) -> None:
    """Idle workers wait for messages; a replica answers READONLY. tests/chaos has more of it."""
    server.admin.replicaof("127.0.0.1", 1)
    time.sleep(3)
    server.admin.replicaof("NO", "ONE")


def _finding(text: str, check: str) -> dict[str, Any]:
    return next(finding for finding in json.loads(text) if finding["check"] == check)


STACK_EXCHANGE = "h.redis.cache.windows.net:6380,password=s3cret=,ssl=True"


@pytest.mark.parametrize(
    ("url", "rights", "says"),
    [
        (STACK_EXCHANGE, RIGHTS, "REDIS_URL is a connection string of StackExchange.Redis"),
        (None, RIGHTS, "has a certificate that is not trusted"),
        ("URL", ("~*", "+@all"), "may not do what Celery needs: all channels."),
    ],
    ids=["stack exchange", "self-signed", "no channels"],
)
def test_every_role_refuses_in_one_line(
    deployment: Deployment,
    secured: Secured,
    url: str | None,
    rights: tuple[str, ...],
    says: str,
) -> None:
    """Code 2, before anything is done; `doctor` finds it, too."""
    secured.grant(*rights)
    change = {"REDIS_URL": secured.unverified if url is None else url.replace("URL", secured.url)}
    roles = [CPU, GPU, BEAT, (*FLOWER, f"--port={free_port()}")]
    if url and "s3cret" in url:
        roles += [(*CELERY, "call", "babylon.produce"), (*CELERY, "inspect", "ping")]
    processes = [deployment.start(*role, env=change) for role in roles]
    codes = [process.wait(timeout=60) for process in processes]
    assert codes == [2] * len(roles), deployment.logs()
    for number in range(len(roles)):
        lines = (deployment.folder / f"{number}.log").read_text().splitlines()
        assert says in lines[-1]
        assert len(lines) == 1 or roles[number] == BEAT  # which shows its banner first
    doctor = deployment.call("babylon", "doctor", "--json", env=change)
    assert doctor.returncode == 2
    finding = _finding(doctor.stdout, "Redis")
    assert not finding["ok"]
    assert says in finding["detail"]
    said = deployment.logs() + doctor.stdout + doctor.stderr
    assert "Traceback" not in said
    assert "s3cret" not in said
    assert query(deployment.context, "SELECT FROM rl.canaries") == []
