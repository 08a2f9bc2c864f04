"""What a newcomer sees first: checks that mean something."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_tasks.cockpit.machine import base_model
from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from tests.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


def test_a_model_of_the_hub_is_looked_for(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(base_model="us/tiny")
    with pytest.raises(UserError, match=r"answers 404 for it: check the name, or set HF_TOKEN"):
        base_model(settings)
    (tmp_path / "config.json").write_text("{}")
    hub.push("us/tiny", tmp_path)
    assert base_model(settings) == f"us/tiny, from {hub.url.removeprefix('http://')}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="not on this machine, and HF_HUB_OFFLINE is set"):
        base_model(settings)
    cached = tmp_path / "cache" / "hub" / "models--us--tiny" / "snapshots" / "1234"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    assert base_model(settings).startswith("us/tiny, in the cache of")


@pytest.mark.parametrize("hub_url", ["http://127.0.0.1:9", "no address", "http://[::1"])
def test_a_hub_that_is_away_is_not_said_to_be_well(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, hub_url: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub_url)
    with pytest.raises(UserError, match=r"cannot be reached \(\w+\): name a folder"):
        base_model(Settings(base_model="us/tiny"))


@pytest.mark.parametrize("ours", [True, False])
def test_a_trainer_that_ends_at_once_leaves_no_semaphore(ours: bool) -> None:
    code = (
        "import multiprocessing, os; from tqdm import tqdm\n"
        "from workers.trainer.bars import need_no_semaphore\n"
        "multiprocessing.set_start_method('spawn')\n"  # 3.14's default keeps semaphores, too
        f"if {ours}: need_no_semaphore()\n"
        "tqdm(disable=True); os._exit(0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("leaked semaphore" in done.stderr) != ours
