"""LOG_FORMAT=json: every role writes one JSON object a line, Celery's own lines and beat's too."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.acceptance.test_workers import BEAT, CPU, FLOWER, GPU, all_trained, published
from tests.rows import add_window, hours_ago

JSON = {"LOG_FORMAT": "json"}
# Ours for people, Celery's and Tornado's.
_OTHER_FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} |\[\d{4}-|\[[DIWEC] \d{6} ")


def test_every_role_writes_json(deployment: Deployment) -> None:
    window, port = hours_ago(2), free_port()
    add_window(deployment.context, window)
    deployment.start(*FLOWER, f"--port={port}", env=JSON)
    deployment.start(*BEAT, env=JSON)
    workers = [deployment.start(*role, env=JSON) for role in (CPU, GPU)]
    deployment.wait(lambda: all_trained(deployment, window) and published(deployment))
    deployment.wait(lambda: _answers(port))
    for worker in workers:
        worker.terminate()
        worker.wait(timeout=30)
    names = ("flower", "beat", "cpu", "gpu")
    said = {name: lines(deployment, number) for number, name in enumerate(names)}
    for name in ("beat", "cpu", "gpu"):
        assert any(line["logger"].startswith("celery.") for line in said[name]), name
    (scored,) = [line for line in said["cpu"] if line["event"].startswith("scored ")]
    assert (scored["lineage"], scored["window"]) == ("babylon-agent", window)
    (committed,) = [line for line in said["gpu"] if line["event"].startswith("step 1 (")]
    assert (committed["lineage"], committed["windows"]) == ("babylon-agent", [window])
    assert (committed["step"], type(committed["token"])) == (1, int)


def lines(deployment: Deployment, number: int) -> list[dict[str, Any]]:
    """The JSON of a role's log. The rest is what Celery prints to stdout for people: a banner."""
    said = (deployment.folder / f"{number}.log").read_text().splitlines()
    rest = [line for line in said if not line.startswith("{")]
    assert not [line for line in rest if _OTHER_FORM.match(line)]
    return [json.loads(line) for line in said if line.startswith("{")]


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthcheck").status_code == 200
    except httpx.HTTPError:
        return False
