"""The way to a judge: what JUDGE_BASE_URL may hold, certificates, and nobody at its end."""

from __future__ import annotations

import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from babylon_tasks import pipeline
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.judge_server import JudgeServer
from tests.judged import (
    every_row,
    judged_windows,
    window_row,
)

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def as_set(url: str) -> str | None:
    """JUDGE_BASE_URL, as the settings read it."""
    return Settings(judge_base_url=url).judge_base_url


def test_what_its_address_says_beside_the_host_is_sent_and_told_nobody(
    make_judged: MakeContext, server: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy wants a name and a password; a trailing slash and a pasted path do no harm."""
    secret = "p@ss/w:rd-very-secret"
    address = server.url.replace("http://", f"http://us%40er:{quote(secret, safe='')}@")
    context = make_judged(judge_base_url=as_set(f" '{address}/chat/completions/' "))
    bad, good = judged_windows(context, 2)
    server.then(judge.server_error, judge.unauthorized)
    assert pipeline.score(context, only=[bad]) == []
    assert pipeline.score(context, only=[good]) == [good]
    pair = b64encode(f"us@er:{secret}".encode()).decode()
    assert {each.headers["authorization"] for each in server.requests} == {f"Basic {pair}"}
    for text in (every_row(context), caplog.text, repr(context.settings)):
        assert "very-secret" not in text
        assert pair not in text


def test_azures_address_is_asked_with_its_version_and_its_key(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    server.path = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
    address = server.url.replace("/v1", server.path)
    context = make_judged(judge_base_url=as_set(address), judge_api_key=SecretStr("azure-key-1"))
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == [window]
    assert server.requests[0].headers["api-key"] == "azure-key-1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of our own, and a certificate of it for 127.0.0.1: ca.pem, judge.pem with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ours",
        "req -newkey rsa:2048 -nodes -keyout judge.key -out judge.csr -subj /CN=judge",
        "x509 -req -in judge.csr -CA ca.pem -CAkey ca.key -out judge.crt -days 2 -extfile names",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "judge.pem").write_text(
        (folder / "judge.crt").read_text() + (folder / "judge.key").read_text()
    )
    return folder


def test_a_certificate_of_an_unknown_ca_is_refused_in_one_line(
    make_judged: MakeContext, server: JudgeServer, certificates: Path
) -> None:
    server.encrypt(certificates / "judge.pem")
    context = make_judged(judge_base_url=server.url.replace("http:", "https:"))
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert row["last_error"].endswith("set SSL_CERT_FILE to your CA's certificate")
    assert server.requests == []


def test_a_certificate_of_an_own_ca_is_trusted_where_it_is_named(
    make_judged: MakeContext,
    server: JudgeServer,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    server.encrypt(certificates / "judge.pem")
    context = make_judged(judge_base_url=server.url.replace("http:", "https:"))
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == [window]


def test_a_file_of_no_certificates_is_no_windows_fault(
    make_judged: MakeContext, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = make_judged(judge_base_url="https://127.0.0.1:9/v1")
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert "is SSL_CERT_FILE, if it is set, a file of certificates?" in row["last_error"]


def test_nobody_at_its_address_is_said_with_the_cause(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(judge_base_url="http://127.0.0.1:9/v1")
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert "Connect call failed" in row["last_error"]
    assert "is JUDGE_BASE_URL right?" in row["last_error"]
