"""Answers of W&B's models through the serverless trainer, from a local server of the same API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("art")

from babylon_tasks.errors import (
    BabylonError,
    CheckpointUnreadable,
    Final,
    RemoteUnavailable,
    UserError,
)
from babylon_tasks.evaluation.exam import Examiner, Version
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Call, Progress, Sample
from babylon_tasks.records.trainer_requests import EvaluateRequest, GenerateRequest
from babylon_tasks.settings import Settings
from babylon_tasks.training.wandb_jobs import OFFERED
from tests.wandb_server import KEY, WandbServer
from workers.trainer.wandb import answers
from workers.trainer.wandb.trainer import RemoteCheckpoint, ServerlessTrainer

NAME = "wandb-artifact:///team/babylon-rl/agent:step1"
TOOLS = [{"type": "function", "function": {"name": "buy", "parameters": {}}}]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        running.create_model(
            {"entity": None, "project": "babylon-rl", "name": "agent", "base_model": OFFERED[0]}
        )
        running.steps["model-1"].append(1)
        yield running


@pytest.fixture
def checkpoint(server: WandbServer, tmp_path: Path) -> str:
    """The folder of step 1."""
    step = RemoteCheckpoint(NAME, server.url, "model-1", 1, OFFERED[0], "job-1")
    (tmp_path / "remote.json").write_bytes(msgspec.json.encode(step))
    return str(tmp_path)


def request(checkpoint: str | None, **changes: Any) -> GenerateRequest:
    prompts = [[{"role": "user", "content": text}] for text in ("Buy?", "Sell?", "Wait?")]
    made = GenerateRequest("agent", OFFERED[0], checkpoint, prompts, 64, 1.0, 7, n=2)
    return msgspec.structs.replace(made, **changes)


def ignore(progress: Progress) -> None:
    pass


def test_a_step_answers_each_prompt_n_times(server: WandbServer, checkpoint: str) -> None:
    said: list[Progress] = []
    result = ServerlessTrainer(KEY).generate(
        request(checkpoint, tools=[None, TOOLS, []]), said.append
    )
    assert [len(each) for each in result.generations] == [2, 2, 2]
    first = result.generations[0][0]
    assert (first.text, first.finish_reason) == ("Wait for a dip.", "stop")
    assert first.logprobs == (-0.5,) * 5
    assert first.token_ids == ()  # the server told them as texts
    assert (result.dropped, result.tokens, result.device) == (0, 6 * 5, "W&B")
    assert {(each.phase, each.total) for each in said} == {("generate", 6)}
    assert all(each.share == each.done / 6 for each in said)
    assert {body["model"] for body in server.asked} == {NAME}
    assert sorted(body["seed"] for body in server.asked) == list(range(7, 13))
    for body in server.asked:
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 1.0, 64)
        with_tools = body["messages"][0]["content"] == "Sell?"
        assert body.get("tools") == (TOOLS if with_tools else None)
        assert body.get("tool_choice") == ("none" if with_tools else None)


def test_ids_are_read_where_they_are_told(
    server: WandbServer, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [{"token": f"token_id:{n}", "logprob": -n / 2} for n in (1, 2)]
    choice = {
        "message": {"role": "assistant", "content": None},
        "logprobs": {"content": content},
        "finish_reason": "length",
    }
    monkeypatch.setattr(server, "answer", lambda body: (200, {"choices": [choice]}))
    result = ServerlessTrainer(KEY).generate(request(checkpoint, n=1), ignore)
    (told,) = result.generations[0]
    assert (told.text, told.token_ids, told.logprobs) == ("", (1, 2), (-0.5, -1.0))
    assert told.finish_reason == "length"


def test_the_base_model_answers_at_the_address_of_the_request(server: WandbServer) -> None:
    trainer = ServerlessTrainer(KEY)
    result = trainer.generate(request(None, remote_url=server.url), ignore)
    assert result.tokens == 6 * 5
    assert {body["model"] for body in server.asked} == {OFFERED[0]}
    with pytest.raises(UserError, match="no remote_url"):
        trainer.generate(request(None), ignore)


def test_a_prompt_that_is_refused_has_no_answer(
    server: WandbServer, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer

    def refuse(*words: str) -> None:
        def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if body["messages"][0]["content"] in words:
                return 400, {"error": {"message": "the prompt is too long"}}
            return answer(body)

        monkeypatch.setattr(server, "answer", reply)

    refuse("Sell?")
    result = ServerlessTrainer(KEY).generate(request(checkpoint), ignore)
    assert [len(each) for each in result.generations] == [2, 0, 2]
    assert (result.dropped, result.tokens) == (1, 4 * 5)
    refuse("Buy?", "Sell?", "Wait?")
    with pytest.raises(Final, match=r"refuses every prompt .*the prompt is too long"):
        ServerlessTrainer(KEY).generate(request(checkpoint), ignore)


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (500, RemoteUnavailable, "cannot be asked about an answer of wandb-artifact"),
        (429, RemoteUnavailable, "cannot be asked about an answer of wandb-artifact"),
        (403, UserError, "refuses WANDB_API_KEY"),
        (404, CheckpointUnreadable, "W&B does not have wandb-artifact"),
    ],
)
def test_what_goes_wrong_is_said_as_what_it_is(
    server: WandbServer,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    error: type[BabylonError],
    says: str,
) -> None:
    monkeypatch.setattr(answers, "_RETRIES", 0)
    server.away["chat/completions"] = status
    with pytest.raises(error, match=says) as raised:
        ServerlessTrainer(KEY).generate(request(checkpoint), ignore)
    assert type(raised.value) is error
    assert KEY not in str(raised.value)


def test_an_answer_in_another_form_is_nobodys_fault(
    server: WandbServer, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for odd in ({}, {"choices": []}, {"choices": [{"message": {}, "logprobs": {"content": [1]}}]}):
        monkeypatch.setattr(server, "answer", lambda body, odd=odd: (200, odd))
        with pytest.raises(RemoteUnavailable, match="cannot be read"):
            ServerlessTrainer(KEY).generate(request(checkpoint), ignore)


def test_a_checkpoint_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnreadable, match=r"cannot read the checkpoint .*remote\.json"):
        ServerlessTrainer(KEY).generate(request(str(tmp_path)), ignore)


def test_how_likely_an_answer_is_cannot_be_asked(checkpoint: str) -> None:
    asked = EvaluateRequest("agent", OFFERED[0], checkpoint, "samples.jsonl", 4096, 16384)
    with pytest.raises(UserError, match="TRAINER=serverless cannot evaluate"):
        ServerlessTrainer(KEY).evaluate(asked, ignore)


def test_an_exam_at_w_and_b_is_on_sampled_answers_alone(
    server: WandbServer, checkpoint: str, tmp_path: Path
) -> None:
    settings = Settings(trainer="serverless", base_model=OFFERED[0], serverless_url=server.url)
    lineage = Lineage("agent", OFFERED[0], primary=True, created_by="test")
    trainer: Any = ServerlessTrainer(KEY)
    examiner = Examiner(
        trainer, settings, lineage, None, lambda text: "dip" in text, tmp_path, lambda _: None
    )
    samples = [
        Sample("2025-01-15T10:00", f"t-{n}", n / 8, [Call("You trade.", f"{n}?", "BUY")])
        for n in range(8)
    ]
    figures = examiner.compare(samples, Version(0, None), Version(1, Path(checkpoint)))
    assert {body["model"] for body in server.asked} == {OFFERED[0], NAME}
    assert (figures["form"].served, figures["form"].candidate) == (1, 1)
    assert (figures["unusable"].candidate, figures["length"].candidate) == (0, 5)
    for name in ("value", "ranking", "kl", "entropy"):
        assert figures[name].candidate is None
        assert figures[name].left_out
