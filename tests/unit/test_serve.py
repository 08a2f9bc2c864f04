"""The small OpenAI-compatible server: answers by name, adapters, and errors in OpenAI's shape."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("starlette")

import torch
from peft import LoraConfig, get_peft_model
from pydantic import SecretStr
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylon_tasks.errors import CheckpointUnreadable, ServerUnavailable, UserError
from babylon_tasks.local import ask as chat
from babylon_tasks.settings import load_settings
from tests.unit.tiny import make_tiny_model
from workers.serve.__main__ import main as start
from workers.serve.api_key import require_key
from workers.serve.app import main, make_app
from workers.serve.engine import ADAPTERS_KEPT, Engine, ServedModel
from workers.serve.versions import parse_name
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.fingerprint import fingerprint

KEY = "a-key-of-24-letters-ü-ok"


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


def test_an_answer_tells_how_likely_its_tokens_were(client: TestClient) -> None:
    """By id as vLLM does, so that what was answered can be trained on with the same tokens."""
    more = {"logprobs": True, "temperature": 1.5, "seed": 4}
    by_id = ask(client, **more, return_tokens_as_token_ids=True).json()
    content = by_id["choices"][0]["logprobs"]["content"]
    assert len(content) == by_id["usage"]["completion_tokens"]
    assert all(re.fullmatch(r"token_id:\d+", each["token"]) for each in content)
    assert all(each["logprob"] <= 0 for each in content)
    assert content[0]["bytes"] == list(content[0]["token"].encode())

    by_text = ask(client, **more).json()["choices"][0]
    tokens = by_text["logprobs"]["content"]
    said = by_text["message"]["content"]
    assert "".join(each["token"] for each in tokens).startswith(said.rstrip("\ufffd"))
    assert [each["logprob"] for each in tokens] == [e["logprob"] for e in content][: len(tokens)]
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in tokens)
    assert ask(client).json()["choices"][0]["logprobs"] is None


def test_log_probabilities_are_the_models_own(client: TestClient, base_model: str) -> None:
    """Those of temperature 1, whatever the temperature was; worked out by the network alone."""
    answer = ask(client, logprobs=True, return_tokens_as_token_ids=True, temperature=0.5, seed=1)
    content = answer.json()["choices"][0]["logprobs"]["content"]
    answered = [int(each["token"].removeprefix("token_id:")) for each in content]
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "YES or NO?"}], add_generation_prompt=True, tokenize=False
    )
    prompted = tokenizer.encode(prompt, add_special_tokens=False)
    network = AutoModelForCausalLM.from_pretrained(base_model)
    with torch.inference_mode():
        logits = network(torch.tensor([prompted + answered])).logits[0].log_softmax(-1)
    values = [float(logits[len(prompted) + n - 1, t]) for n, t in enumerate(answered)]
    assert [each["logprob"] for each in content] == pytest.approx(values, abs=1e-4)


def test_a_character_of_several_tokens_is_the_last_ones(base_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tokens = tokenizer.encode("é!", add_special_tokens=False)
    assert len(tokens) == 3
    assert ChatFormat(tokenizer, base_model).token_texts(tokens) == ["", "é", "!"]


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


@pytest.fixture
def locked() -> TestClient:
    """A server with a key, and no model behind it."""
    app = make_app(lambda name: None, lambda: ["agent"], api_key=SecretStr(KEY))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer \xff\xfe",
     b"Bearer " + KEY[:-1].encode(), b"Bearer " + KEY.encode() + b"x", b"Bearer null"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/chat/completions", "/", "/healthz/", "//healthz", "/nothing"]
)
def test_without_the_key_nothing_is_answered(
    locked: TestClient, path: str, header: bytes | None
) -> None:
    headers = {} if header is None else {b"Authorization": header}
    answer = locked.post(path, headers=headers, content=b"{}")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


def test_with_the_key_it_answers_and_health_needs_none(locked: TestClient) -> None:
    headers = {b"Authorization": b"bearer " + KEY.encode()}
    assert locked.get("/v1/models", headers=headers).json()["data"][0]["id"] == "agent"
    assert locked.get("/nothing", headers=headers).status_code == 404
    assert locked.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "127.0.0.1.x"])
def test_without_a_key_it_stays_on_loopback(host: str) -> None:
    with pytest.raises(UserError, match="set SERVE_API_KEY"):
        require_key(host, None)
    require_key(host, SecretStr(KEY))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_it_needs_no_key(host: str) -> None:
    require_key(host, None)


@pytest.fixture
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SERVE_API_KEY", KEY)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_the_command_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--host", "0.0.0.0", "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("a model server on 0.0.0.0 needs a key: set SERVE_API_KEY")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("key_in_the_environment")
@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", "99999"), ("127.0.0.1", "-1"), ("203.0.113.1", "0"), (f"{'a' * 70}.x", "0")],
)
def test_an_address_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, port: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/db")
    monkeypatch.setattr(sys, "argv", ["serve", "--host", host, "--port", port])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cannot listen on {host}:{port} (")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("key_in_the_environment")
def test_our_own_question_carries_the_key(
    locked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(url: str, headers: Any, json: Any, timeout: float) -> httpx.Response:
        answer = locked.post(url, headers=headers, json=json)
        return httpx.Response(answer.status_code, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", post)
    with pytest.raises(ServerUnavailable, match="404"):  # there is no model, but it was let in
        chat.ask("http://testserver", "agent")


@pytest.mark.parametrize(
    "name",
    ["agent@" + "9" * 5000, "agent@9999999999", "agent@-1", "agent@²", "agent@1e3", "@1", ""],
)
def test_a_name_that_no_step_can_have_is_unknown(name: str) -> None:
    assert parse_name(name) == (name, None)


def test_another_base_model_than_the_pinned_one_is_refused(base_model: str) -> None:
    """A folder of which the files were changed since the lineage's first step."""
    pinned = fingerprint(Path(base_model))

    def resolve(name: str) -> ServedModel:
        return ServedModel(base_model, 0, None, pinned if name == "pinned" else "files:0123")

    client = TestClient(make_app(resolve, list), raise_server_exceptions=False)
    assert ask(client, "pinned").status_code == 200
    answer = ask(client, "other")
    assert answer.status_code == 503
    assert "is pinned to files:0123" in answer.json()["error"]["message"]


def test_its_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is as before in the end
    monkeypatch.delenv("OMP_WAIT_POLICY")
    policies = []
    monkeypatch.setattr(
        "workers.serve.app.main", lambda: policies.append(os.environ.get("OMP_WAIT_POLICY"))
    )
    start()
    assert policies == ["PASSIVE"]
