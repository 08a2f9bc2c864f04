"""The small OpenAI-compatible server: answers by name, adapters, and errors in OpenAI's shape."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("starlette")

import torch
from peft import LoraConfig, get_peft_model
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from babylon_tasks.errors import CheckpointUnreadable
from tests.unit.tiny import make_tiny_model
from workers.serve import make_app
from workers.serve_engine import ADAPTERS_KEPT, Engine, ServedModel


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def adapters(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six adapters that make the model say different things."""
    folders = []
    for number in range(ADAPTERS_KEPT + 2):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(base_model)
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
        folders.append(tmp_path_factory.mktemp(f"step{number}"))
        adapted.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def client(base_model: str, adapters: list[Path]) -> TestClient:
    def resolve(name: str) -> ServedModel | None:
        model, _, step = name.partition("@")
        if model == "unreadable":
            raise CheckpointUnreadable("cannot read the checkpoint")
        if model != "agent":
            return None
        number = int(step or 0)
        return ServedModel(base_model, number, adapters[number - 1] if number else None)

    app = make_app(resolve, lambda: ["agent", "agent@1"], Engine())
    return TestClient(app, raise_server_exceptions=False)


def ask(client: TestClient, model: str = "agent", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "YES or NO?"}], **more}
    return client.post("/v1/chat/completions", json={"max_tokens": 8, **body})


def text(client: TestClient, model: str, **more: Any) -> str:
    answer = ask(client, model, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_answer_has_openais_shape(client: TestClient) -> None:
    body = ask(client).json()
    assert (body["object"], body["model"]) == ("chat.completion", "agent")
    assert body["choices"][0]["finish_reason"] in {"stop", "length"}
    usage = body["usage"]
    assert 1 <= usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["agent", "agent@1"]


def test_each_name_answers_with_its_own_adapter_also_after_it_was_dropped(
    client: TestClient,
) -> None:
    names = ["agent", *(f"agent@{n}" for n in range(1, ADAPTERS_KEPT + 3))]
    first = {name: text(client, name) for name in names}
    again = {name: text(client, name) for name in reversed(names)}
    assert first == again
    assert len(set(first.values())) >= ADAPTERS_KEPT


def test_a_seed_repeats_a_sampled_answer(client: TestClient) -> None:
    answers = [text(client, "agent", temperature=1.5, seed=seed) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_an_unknown_model_is_404(client: TestClient) -> None:
    answer = ask(client, "other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"model": "agent"}',
        b'{"model": "agent", "messages": []}',
        b'{"model": "agent", "messages": "hello"}',
        b'{"model": "agent", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}',
        b'{"model": "agent", "messages": [{"role": "user", "content": "x"}], "stream": true}',
    ],
)
def test_bad_requests_are_400(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_prompt_longer_than_the_model_is_400(client: TestClient) -> None:
    answer = ask(client, messages=[{"role": "user", "content": "rise " * 9000}])
    assert answer.status_code == 400
    assert "the model takes 4096" in answer.json()["error"]["message"]


def test_other_errors_keep_the_shape(client: TestClient) -> None:
    assert client.get("/nothing").json()["error"]["message"] == "Not Found"
    answer = ask(client, "unreadable")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "cannot read the checkpoint"


def test_the_port_is_printed_before_the_first_request() -> None:
    program = (
        "from workers.serve import listen, make_app\n"
        "listen(make_app(lambda name: None, list), '127.0.0.1', 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.removeprefix("listening on ").strip()
        with urllib.request.urlopen(f"{url}/healthz", timeout=20) as answer:
            assert answer.read() == b'{"status":"ok"}'
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.stdout.close()
