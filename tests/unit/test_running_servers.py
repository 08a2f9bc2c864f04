"""The servers that `babylon up` runs in a folder, as the commands beside it find them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_tasks.settings import load_settings, running

ENV = {
    "DATABASE_URL": "postgresql://postgres@/babylon?host=/a b/'c'&port=5432",
    "REDIS_URL": "redis://:s3cret@127.0.0.1:1/0",
    "TRAIN_RL_LOCAL": "true",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".babylon").mkdir()
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_they_are_found_while_their_process_lives() -> None:
    assert running.read() == {}
    with running.announced(ENV):
        assert running.read() == ENV
        assert stat.S_IMODE(running.FILE.stat().st_mode) == 0o600
        settings = load_settings()
        assert settings.database_url is not None
        assert settings.database_url.get_secret_value() == ENV["DATABASE_URL"]
        assert settings.redis_url is not None
        assert settings.redis_url.get_secret_value() == ENV["REDIS_URL"]
        settings.require_training_allowed()
    assert not running.FILE.exists()
    assert running.read() == {}


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_whoever_sets_a_server_gets_no_other(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, ENV[name])
    with running.announced(ENV):
        settings = load_settings()
    assert (settings.database_url is None) == (name == "REDIS_URL")
    assert (settings.redis_url is None) == (name == "DATABASE_URL")


def test_a_shell_can_read_them() -> None:
    with running.announced(ENV):
        told = subprocess.run(
            ["sh", "-c", f'. ./{running.FILE}; printf %s "$DATABASE_URL"'],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert told.stdout == ENV["DATABASE_URL"]


def test_what_a_killed_process_left_is_no_server() -> None:
    code = (
        "import os, signal; from babylon_tasks.settings import running\n"
        "with running.announced({'DATABASE_URL': 'x'}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert running.FILE.exists()
    assert running.read() == {}
    # Another process has its number now.
    text = running.FILE.read_text()
    pid = text.split()[3].rstrip(",")
    running.FILE.write_text(text.replace(f" {pid},", f" {os.getpid()},"))
    assert running.read() == {}
    with running.announced(ENV):  # and it is in nobody's way
        assert running.read() == ENV


@pytest.mark.parametrize(
    "text", ["", "\n", "# of process 1", "x y z 0, started at 5", "# of process me, started at 5",
             "# of process 99999999999, started at 5\nDATABASE_URL='", "\udcff"]
)  # fmt: skip
def test_a_broken_file_is_no_server(text: str) -> None:
    running.FILE.write_bytes(text.encode(errors="surrogateescape"))
    assert running.read() == {}
    assert load_settings().database_url is None
