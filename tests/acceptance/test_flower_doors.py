"""Flower behind a reverse proxy, and while Postgres or Redis is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.nginx import reverse_proxy

FLOWER = ("celery", "-A", "babylon_tasks", "flower")
LOGIN = ("user", "pass word:2")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(deployment: Deployment, url: str, port: int, env: dict[str, str]) -> None:
    """Flower, until it answers."""
    deployment.start(*FLOWER, f"--port={port}", env=env)
    deployment.wait_for_page(f"{url}/healthcheck")


def test_behind_a_path_prefix_and_a_reverse_proxy(
    deployment: Deployment, stack: ExitStack, tmp_path: Path
) -> None:
    port = free_port()
    outside = stack.enter_context(reverse_proxy(tmp_path, port, "/watch"))
    site = f"{outside}/watch"
    env = {
        "FLOWER_BASIC_AUTH": ":".join(LOGIN),
        "FLOWER_URL_PREFIX": "watch",
        "FLOWER_XHEADERS": "true",
    }
    start(deployment, site, port, env)
    client = stack.enter_context(httpx.Client(auth=LOGIN))
    assert httpx.get(f"{site}/").status_code == 401
    assert httpx.get(f"{site}/", auth=(LOGIN[0], "wrong")).status_code == 401
    assert client.get(site).headers["Location"] == "/watch/"
    for page in ("", "workers", "tasks", "broker"):
        answer = client.get(f"{site}/{page}")
        assert answer.status_code == 200, page
        links = re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)
        assert len(links) > 8
        for link in set(links):
            assert link.startswith("/watch"), link
            assert client.get(f"{outside}{link}", follow_redirects=True).status_code == 200, link
    assert "Runs now" in client.get(f"{site}/").text
    assert "Runs now" in client.get(f"{site}/?parts=1").text
    assert "babylon_up" in httpx.get(f"{site}/metrics").text
    rows = {"draw": "1", "start": "0", "length": "15", "order[0][column]": "0"}
    for headers, code in (
        ({"Origin": outside}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ):
        answer = client.post(f"{site}/tasks/datatable", data=rows, headers=headers)
        assert answer.status_code == code, headers


def test_a_named_file_is_read_beside_ours(deployment: Deployment) -> None:
    named, port = deployment.folder / "named.py", free_port()
    named.write_text(f"basic_auth = '{':'.join(LOGIN)}'\n")
    site = f"http://127.0.0.1:{port}"
    deployment.start(*FLOWER, f"--port={port}", "--conf=named.py")
    deployment.wait_for_page(f"{site}/healthcheck")
    assert httpx.get(site).status_code == 401
    assert "Runs now" in httpx.get(site, auth=LOGIN).text


@pytest.mark.parametrize("by_variable", [True, False])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("address = '0.0.0.0'", "Flower on 0.0.0.0 needs authentication"),
        (
            "if True:\n    BASIC_AUTH: str = 'a:b'",
            "BASIC_AUTH in the flowerconfig.py is no setting",
        ),
        ("basic_auth = ", "Flower's settings in named.py cannot be used: SyntaxError: "),
        ("port = []", "Flower's settings in named.py cannot be used: Error: Option 'port'"),
        (None, "FLOWER_CONF (--conf): named.py cannot be read: No such file or directory"),
    ],
)
def test_a_named_file_does_not_go_around_the_doors(
    deployment: Deployment, text: str | None, says: str, by_variable: bool
) -> None:
    if text is not None:
        (deployment.folder / "named.py").write_text(text)
    env = {"FLOWER_CONF": "named.py"} if by_variable else {}
    done = deployment.run(*FLOWER, *(() if by_variable else ("--conf=named.py",)), env=env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.slow
def test_the_first_page_says_who_is_away_and_shows_the_rest(deployment: Deployment) -> None:
    """However long a server hangs, no other page waits for it."""
    port = free_port()
    site = f"http://127.0.0.1:{port}"
    start(deployment, site, port, {})

    def shows(*texts: str) -> bool:
        page = httpx.get(site, timeout=10).text
        return all(text in page for text in texts)

    assert shows("Nothing runs now")
    with psycopg.connect(deployment.env["DATABASE_URL"]) as other:
        other.execute("LOCK TABLE rl.leases IN ACCESS EXCLUSIVE MODE")
        deployment.wait(lambda: shows("Postgres has not answered for", "Messages that wait"))
        assert httpx.get(f"{site}/healthcheck", timeout=2).status_code == 200
    deployment.wait(lambda: shows("Nothing runs now"))
