"""The endpoint's start: what it refuses, in one line, and what it chooses by the settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("aiohttp")

from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings, load_settings
from workers.serve import backends, service
from workers.serve.__main__ import main

KEY = "a-key-of-24-letters-is-ok"
NOWHERE = "postgresql://u:p4ssw0rd@127.0.0.1:1/db"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.setenv("SERVE_API_KEY", KEY)
    # Or the log of all later tests would go to this test's standard error, which is closed then.
    monkeypatch.setattr(service, "configure_logging", lambda *_: None)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says as it refuses to start."""
    sys.argv = ["serve", *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "WARNING" not in each]
    return line


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", "99999"), ("127.0.0.1", "-1"), ("203.0.113.1", "0"), (f"{'a' * 70}.x", "0")],
)
def test_an_address_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, port: str
) -> None:
    monkeypatch.setenv("VLLM_URLS", "http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", [])
    assert refused(capsys, "--host", host, "--port", port).startswith(
        f"cannot listen on {host}:{port} ("
    )


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"VLLM_URLS": "http://a:1", "VLLM_PYTHON": "/bin/true"}, "exclude each other"),
        ({"VLLM_URLS": "gpu1:8001"}, "VLLM_URLS"),
        ({"VLLM_URLS": " , "}, "VLLM_URLS"),
        ({"VLLM_PYTHON": "/no/such/python"}, "VLLM_PYTHON=/no/such/python is no program"),
        ({"VLLM_PYTHON": "/bin/true", "VLLM_ARGUMENTS": "'"}, "VLLM_ARGUMENTS cannot be read"),
        ({"VLLM_PYTHON": "/bin/true", "LORA_RANK": "1024"}, "LORA_RANK"),
        ({"SERVE_API_KEY": "short"}, "SERVE_API_KEY"),
        ({"DATABASE_URL": "mysql://h/d"}, "DATABASE_URL"),
    ],
)
def test_wrong_settings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [])
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert said in refused(capsys, "--port", "0")


def settings(**more: Any) -> Settings:
    return Settings(database_url=NOWHERE, serve_api_key=KEY, _env_file=None, **more)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, ["embedded"]),
        ({"vllm_urls": "http://a:1/v1, http://b:2/"}, ["vllm", "vllm"]),
        ({"vllm_urls": "http://a:1", "wandb_api_key": KEY, "trainer": "torch"}, ["vllm", "wandb"]),
        ({"wandb_api_key": KEY}, ["wandb"]),  # its trainer is W&B's, too
        ({"wandb_api_key": KEY, "trainer": "torch"}, ["embedded", "wandb"]),
        ({"vllm_python": sys.executable}, ["vllm"]),
    ],
)
def test_the_settings_choose_the_backends(more: dict[str, Any], kinds: list[str]) -> None:
    pytest.importorskip("peft")
    given = settings(**more)
    made = backends.make_backends(given, Lineage.of_deployment(given))
    assert [each.kind for each in made.all] == kinds
    assert (made.process is not None) == ("vllm_python" in more)


def test_a_password_in_an_address_is_not_shown() -> None:
    given = settings(vllm_urls="http://u:s3cret@a:1")
    (backend,) = backends.make_backends(given, Lineage.of_deployment(given)).all
    assert backend.name == "a:1"


def test_without_packages_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    for more, said in (
        ({}, r"torch is not installed: set VLLM_URLS, or pip install 'babylon-tasks\[train\]'"),
        ({"vllm_urls": "http://a:1"}, r"aiohttp is not installed: pip install .*\[serve\]"),
    ):
        given = settings(**more)
        with pytest.raises(UserError, match=said):
            backends.make_backends(given, Lineage.of_deployment(given))


def test_our_own_engine_needs_no_client_of_other_servers() -> None:
    """The demo is installed without aiohttp."""
    program = "import sys; sys.modules['aiohttp'] = None; import workers.serve.service, workers.serve.embedded.backend"  # noqa: E501
    subprocess.run([sys.executable, "-c", program], check=True)


def test_its_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is as before in the end
    monkeypatch.delenv("OMP_WAIT_POLICY")
    policies = []
    monkeypatch.setattr(service, "run", lambda: policies.append(os.environ["OMP_WAIT_POLICY"]))
    main()
    assert policies == ["PASSIVE"]
