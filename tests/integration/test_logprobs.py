"""Log-probabilities of recorded answers: attached while a window is scored, trained with after."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from pydantic import SecretStr
from transformers import Qwen2Config, Qwen2ForCausalLM

from babylon_tasks import pipeline
from babylon_tasks.errors import NotRecorded, ServerUnavailable
from babylon_tasks.local.ports import free_port
from babylon_tasks.records.steps import Call, Logprobs, Sample
from babylon_tasks.scoring.logprobs import attach
from babylon_tasks.scoring.logprobs import server as asking
from babylon_tasks.store import logprobs as rows
from babylon_tasks.training.wandb_jobs import OFFERED
from babylon_tasks.work.context import Context
from tests import logprobs_server as vllm
from tests.clock import let_waits_pass
from tests.logprobs_server import Fault, LogprobsServer
from tests.rows import add_trajectory, hours_ago, one, query, states, steps
from tests.unit.templates import tokenizer_of
from tests.unit.tiny import make_tiny_model
from tests.wandb_server import KEY as WANDB_KEY
from tests.wandb_server import WandbServer
from workers.trainer.samples import read_samples
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.wandb.trainer import ServerlessTrainer

MakeContext = Callable[..., Context]

KEY = "sk-logprobs-0123456789abcdef"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # litellm's own
    pytest.mark.filterwarnings("ignore:cov"),  # ART correlates what was recorded: nothing
]


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def vllm_server(base_model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogprobsServer]:
    """A vLLM that has the base model as `base`."""
    monkeypatch.setattr(asking, "_WAIT_SECONDS", 0.01)
    with LogprobsServer(base_model) as running:
        running.models["base"] = None
        yield running


@pytest.fixture
def make_asking(
    make_context: MakeContext, vllm_server: LogprobsServer, base_model: str
) -> Callable[..., Context]:
    """Workers that ask that server, of `base` where no version is recorded."""

    def make(**changes: Any) -> Context:
        asked = {"logprobs_url": vllm_server.url, "logprobs_model": "base"}
        return make_context(**{**asked, "base_model": base_model, **changes})

    return make


def calls(agent: int, count: int = 2, **more: Any) -> list[dict[str, Any]]:
    return [
        {"systemPrompt": "You trade.", "userPrompt": f"Agent {agent}, turn {n}?",
         "response": f"BUY {agent * 7 + n} now", **more}
        for n in range(count)
    ]  # fmt: skip


def add_window(context: Context, window: str, agents: int = 3, **more: Any) -> list[str]:
    """A window of agents with two calls each, ready to be scored; the trajectory ids."""
    ids = []
    for agent in range(agents):
        (run,) = json.loads(steps(300.0 * agent - 200, 1))
        run["llmCalls"] = calls(agent, **more)
        text = json.dumps([run])
        ids.append(add_trajectory(context, window, f"agent-{agent}", stepsJson=text))
    pipeline.produce(context)
    return ids


class Watched(TorchTrainer):
    """The torch trainer in this process; keeps the samples it was sent."""

    def step(self, request: Any, on_progress: Any) -> Any:
        self.samples: list[Sample] = read_samples(request.samples_path)
        return super().step(request, on_progress)


@pytest.fixture(scope="module")
def trainer() -> Watched:
    return Watched("cpu-0")


def score_again(context: Context, window: str) -> None:
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.windows SET state = 'due' WHERE window_id = %s", [window])
    assert pipeline.score(context) == [window]


def own_logprobs(model: LanguageModel, call: Call) -> Logprobs:
    """What the trainer's own model says of a call, its end of turn included."""
    messages = [{"role": "system", "content": call.system}, {"role": "user", "content": call.user}]
    prompt, answer = model.chat.encode([model.chat.prompt(messages), call.response])
    answer += model.chat.end_ids
    tokens = torch.tensor([prompt + answer])
    predicts = torch.arange(tokens.shape[1])[None] >= len(prompt) - 1
    predicts[0, -1] = False
    with torch.no_grad():
        values, _ = model.logprobs(tokens, predicts)
    return Logprobs(tuple(answer), tuple(values.tolist()))


def test_attached_values_are_those_of_the_version_that_answered(
    make_asking: MakeContext, vllm_server: LogprobsServer, trainer: Watched, base_model: str
) -> None:
    """Step 1 trains on what the base model is said to have answered, step 2 on what step 1 is.

    Each trains what it asks about, once, so its ratios are 1.
    """
    context = make_asking(learning_rate=0.01, warmup_steps=0, passes=1)
    first, second = hours_ago(5), hours_ago(3)
    add_window(context, first)
    assert pipeline.score(context) == [first]
    report = pipeline.train(context, trainer)
    assert report is not None
    metrics = report.result.metrics
    assert (metrics["logprobs_share"], metrics["logprobs_misfit"]) == (1, 0)
    assert (metrics["ratio_mean"], metrics["ratio_clipped"]) == (pytest.approx(1, abs=1e-4), 0)
    assert metrics["kl_recorded"] == pytest.approx(0, abs=1e-4)
    assert metrics["probs_corr"] == pytest.approx(1, abs=1e-4)
    model = LanguageModel(base_model, torch.device("cpu"))
    model.add_adapter(8, 16, seed=1)
    assert len(trainer.samples) == 3
    for call in (call for sample in trainer.samples for call in sample.calls):
        expected = own_logprobs(model, call)
        assert call.logprobs is not None
        assert call.logprobs.token_ids == expected.token_ids
        assert call.logprobs.values == pytest.approx(expected.values, abs=1e-4)

    vllm_server.models["babylon-agent@1"] = report.checkpoint
    vllm_server.asked.clear()
    add_window(context, second, modelVersion=report.version)
    assert pipeline.score(context) == [second]
    assert {name for name, _ in vllm_server.asked} == {"babylon-agent@1"}
    again = pipeline.train(context, trainer)
    assert again is not None
    assert again.result.metrics["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert again.result.metrics["kl_recorded"] == pytest.approx(0, abs=1e-4)
    stored = one(context, "SELECT metrics FROM rl.steps WHERE step = 2")["metrics"]
    assert stored["staleness_known"] == 6
    assert (stored["staleness_mean"], stored["staleness_max"]) == (0, 0)


@pytest.mark.parametrize("family", ["zephyr", "glm-4"])
def test_the_server_makes_the_trainers_tokens_of_other_kinds(
    family: str,
    make_context: MakeContext,
    trainer: Watched,
    base_model: str,
    tmp_path: Path,
) -> None:
    """SentencePiece's answers begin without a space; GLM-4's with a line break, and have no end."""
    folder = str(shutil.copytree(base_model, tmp_path / family))
    tokenizer_of(family).save_pretrained(folder)
    size = len(tokenizer_of(family))
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=size, num_hidden_layers=1, num_key_value_heads=2, **shape)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    with LogprobsServer(folder) as server:
        server.models["base"] = None
        context = make_context(
            base_model=folder, logprobs_url=server.url, logprobs_model="base", passes=1
        )
        add_window(context, hours_ago(2))
        pipeline.score(context)
        report = pipeline.train(context, trainer)
    assert report is not None
    metrics = report.result.metrics
    assert (metrics["logprobs_share"], metrics["logprobs_misfit"]) == (pytest.approx(1, abs=0.2), 0)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_a_base_models_values_show_how_far_the_head_has_gone(
    make_asking: MakeContext, trainer: Watched
) -> None:
    context = make_asking(learning_rate=0.01, warmup_steps=0)
    for hours in (5, 3):
        add_window(context, hours_ago(hours))
        pipeline.score(context)
        report = pipeline.train(context, trainer)
    assert report is not None
    assert report.result.metrics["logprobs_share"] == 1
    assert abs(report.result.metrics["ratio_mean"] - 1) > 1e-3
    assert report.result.metrics["probs_corr"] < 1 - 1e-6


def test_recorded_ones_win_and_nobody_is_asked_about_them(
    make_asking: MakeContext, vllm_server: LogprobsServer, trainer: Watched
) -> None:
    context = make_asking()
    window = hours_ago(3)
    content = [{"token": f"token_id:{n}", "logprob": -0.5} for n in range(3)]
    add_window(context, window, logprobs={"content": content})
    pipeline.score(context)
    assert vllm_server.asked == []
    report = pipeline.train(context, trainer)
    assert report is not None
    sent = [call.logprobs for sample in trainer.samples for call in sample.calls]
    assert sent == [Logprobs((0, 1, 2), (-0.5,) * 3)] * 6
    metrics = report.result.metrics
    assert (metrics["logprobs_share"], metrics["logprobs_misfit"]) == (0, 6)


def test_whom_to_ask_follows_from_the_version(
    make_asking: MakeContext, vllm_server: LogprobsServer, trainer: Watched
) -> None:
    """A version of this model is asked about by its step; others only where a model is named."""
    context = make_asking(logprobs_model=None)
    add_window(context, hours_ago(5), modelVersion="v9.9.9")
    pipeline.score(context)
    assert vllm_server.asked == []
    report = pipeline.train(context, trainer)
    assert report is not None
    vllm_server.models["babylon-agent@1"] = report.checkpoint
    window = hours_ago(3)
    versions = [report.version, f"babylon-agent-{report.version}", None, "v9"]
    for agent, version in enumerate(versions):
        (run,) = json.loads(steps(300.0 * agent, 1))
        run["llmCalls"] = calls(agent, 1, modelVersion=version)
        add_trajectory(context, window, f"agent-{agent}", stepsJson=json.dumps([run]))
    pipeline.produce(context)
    pipeline.score(context)
    assert [name for name, _ in vllm_server.asked] == ["babylon-agent@1"] * 2
    again = pipeline.train(context, trainer)
    assert again is not None
    sent = [bool(call.logprobs) for sample in trainer.samples for call in sample.calls]
    assert sent == [True, True, False, False]
    metrics = again.result.metrics
    assert [metrics[f"staleness_{n}"] for n in ("known", "mean", "max")] == [2, 0, 0]


def test_nothing_is_asked_twice(make_asking: MakeContext, vllm_server: LogprobsServer) -> None:
    context = make_asking()
    window = hours_ago(3)
    add_window(context, window)
    vllm_server.then(vllm.good, vllm.good, vllm.refused)
    pipeline.score(context)
    assert len(vllm_server.asked) == 6
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 5
    vllm_server.asked.clear()
    score_again(context, window)
    assert len(vllm_server.asked) == 1
    vllm_server.asked.clear()
    score_again(context, window)
    assert vllm_server.asked == []
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 6


def test_what_was_answered_before_a_crash_is_kept(
    make_asking: MakeContext, vllm_server: LogprobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "_BATCH", 2)
    context = make_asking()
    window = hours_ago(3)
    add_window(context, window)
    add, times = rows.add, []

    def crash(*arguments: Any) -> None:
        times.append(1)
        if len(times) == 3:
            raise ServerUnavailable("Postgres went away")
        add(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(rows, "add", crash)
        with pytest.raises(ServerUnavailable):
            pipeline.score(context)
    assert states(context) == {window: "due"}
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 4
    vllm_server.asked.clear()
    assert pipeline.score(context) == [window]
    assert len(vllm_server.asked) == 2


def test_another_model_to_ask_takes_the_place_of_the_first(
    make_asking: MakeContext, vllm_server: LogprobsServer
) -> None:
    vllm_server.models["other"] = None
    window = hours_ago(3)
    add_window(make_asking(), window)
    pipeline.score(make_asking())
    context = make_asking(logprobs_model="other")
    score_again(context, window)
    assert {r["asked_of"] for r in query(context, "SELECT * FROM rl.logprobs")} == {"other"}
    assert len(vllm_server.asked) == 12


FAULTS = [
    vllm.refused, vllm.server_error, vllm.unauthorized, vllm.not_json, vllm.no_choices,
    vllm.no_logprobs, vllm.too_short, vllm.too_long, vllm.a_null_more, vllm.other_ids,
    vllm.positive, vllm.beyond_numbers, vllm.hang,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_whatever_the_server_does_the_window_goes_on(
    make_asking: MakeContext,
    vllm_server: LogprobsServer,
    trainer: Watched,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if fault is vllm.hang:
        monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.3)
    context = make_asking()
    window = hours_ago(3)
    add_window(context, window, agents=6)
    vllm_server.default = fault
    assert pipeline.score(context) == [window]
    row = one(context, "SELECT state, funnel, attempts FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("scored", 0)
    assert row["funnel"]["unattached"] == 12
    assert query(context, "SELECT * FROM rl.logprobs") == []
    assert query(context, "SELECT * FROM rl.leases") == []
    (line,) = [r.getMessage() for r in caplog.records if r.name == attach.__name__]
    assert "12 of 12 calls without log-probabilities: " in line
    assert pipeline.train(context, trainer)
    assert not any(call.logprobs for sample in trainer.samples for call in sample.calls)


@pytest.mark.parametrize(
    "fault", [vllm.server_error, vllm.not_json, vllm.hang], ids=lambda fault: fault.__name__
)
def test_it_is_asked_again(
    make_asking: MakeContext,
    vllm_server: LogprobsServer,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault is vllm.hang:
        monkeypatch.setattr(asking, "ANSWER_SECONDS", 1.0)
    context = make_asking()
    add_window(context, hours_ago(3))
    vllm_server.then(fault, vllm.good, fault)
    pipeline.score(context)
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 6
    assert len(vllm_server.asked) == 8


def test_a_server_that_is_away_is_not_asked_for_every_call(
    make_asking: MakeContext, vllm_server: LogprobsServer, caplog: pytest.LogCaptureFixture
) -> None:
    away = f"http://127.0.0.1:{free_port()}/v1"
    context = make_asking(logprobs_url=away)
    windows = [hours_ago(hours) for hours in (5, 4, 3)]
    for window in windows:
        add_window(context, window, agents=20)
    assert pipeline.score(context) == windows
    lines = [r.getMessage() for r in caplog.records if r.name == attach.__name__]
    assert len(lines) == 3
    assert all("ConnectError" in line and "40 of 40" in line for line in lines)
    # One that fails for every call, not only for one of them, is asked no more.
    vllm_server.default = vllm.server_error
    failing = make_asking(max_attempts=4)
    window = hours_ago(2)
    add_window(failing, window, agents=40)
    assert pipeline.score(failing) == [window]
    assert len(vllm_server.asked) < 80 * 3 / 2


def test_a_model_that_the_server_has_not_is_asked_for_once_or_so(
    make_asking: MakeContext, vllm_server: LogprobsServer, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_asking(logprobs_model="absent")
    add_window(context, hours_ago(3), agents=20)
    pipeline.score(context)
    assert "The model `absent` does not exist" in caplog.text
    assert vllm_server.tokenized == 0
    assert states(context) == {hours_ago(3): "scored"}


def test_its_key_is_given_and_does_not_show(
    make_context: MakeContext, base_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    from pydantic import SecretStr

    with LogprobsServer(base_model, key=KEY) as vllm_server:
        vllm_server.models["base"] = None
        for key, found in ((SecretStr(KEY), 6), (None, 6), (SecretStr("wrong\nkey"), 6)):
            context = make_context(
                logprobs_url=vllm_server.url, logprobs_model="base", logprobs_api_key=key
            )
            window = hours_ago(9 - len(states(context)))
            add_window(context, window)
            assert pipeline.score(context) == [window]
            assert len(query(context, "SELECT * FROM rl.logprobs")) == found
    assert "says 401" in caplog.text
    assert KEY not in caplog.text
    assert "wrong" not in caplog.text


def test_leases_live_while_the_server_takes_its_time(
    make_asking: MakeContext, vllm_server: LogprobsServer
) -> None:
    context = make_asking(lease_seconds=1.0, heartbeat_seconds=0.3)
    window = hours_ago(3)
    add_window(context, window)
    vllm_server.delay_seconds = 2.5
    assert pipeline.score(context) == [window]
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 6


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_window_is_not_asked_about_for_ever(
    make_asking: MakeContext,
    vllm_server: LogprobsServer,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither before the time is over nor, where it ends in the middle of a question, after."""
    monkeypatch.setattr(attach, "_WINDOW_SECONDS", seconds)
    context = make_asking()
    vllm_server.delay_seconds = 20.0
    add_window(context, hours_ago(3))
    assert pipeline.score(context) == [hours_ago(3)]
    assert vllm_server.asked == []
    assert one(context, "SELECT funnel FROM rl.windows")["funnel"]["unattached"] == 6


def test_windows_that_a_slow_server_keeps_waiting_are_left_to_the_next_claim(
    make_asking: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that takes too long is killed, and its other windows would be suspected."""
    context = make_asking()
    first, second = hours_ago(3), hours_ago(2)
    for window in (first, second):
        add_window(context, window)
    monkeypatch.setattr(attach, "_BEGIN_SECONDS", 0.0)
    assert pipeline.score(context) == [first]
    row = one(context, "SELECT state, attempts FROM rl.windows WHERE window_id = %s", second)
    assert row == {"state": "due", "attempts": 0}
    assert pipeline.score(context) == [second]
    assert query(context, "SELECT FROM rl.attempts WHERE ended_at IS NULL") == []


def test_a_claim_that_a_judge_kept_for_long_goes_on_without(
    make_asking: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_asking()
    window = hours_ago(2)
    add_window(context, window)
    monkeypatch.setattr(attach, "_CLAIM_SECONDS", 0.0)
    assert pipeline.score(context) == [window]
    assert one(context, "SELECT funnel FROM rl.windows")["funnel"]["unattached"] == 6


def test_texts_that_do_not_fit_memory_at_once_are_read_again(
    make_asking: MakeContext, vllm_server: LogprobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "_HELD_BYTES", 50)
    context = make_asking()
    add_window(context, hours_ago(3), agents=5)
    pipeline.score(context)
    assert len(vllm_server.asked) == len(query(context, "SELECT * FROM rl.logprobs")) == 10


def test_they_are_gone_with_the_commit_and_others_stay(
    make_asking: MakeContext, trainer: Watched
) -> None:
    context = make_asking()
    first, second = hours_ago(5), hours_ago(3)
    for window in (first, second):
        add_window(context, window)
    pipeline.score(context)
    assert pipeline.train(context, trainer, only=[first])
    left = query(context, "SELECT DISTINCT window_id FROM rl.logprobs")
    assert left == [{"window_id": second}]


def test_a_rewritten_answer_is_not_trained_with_the_old_ones(
    make_asking: MakeContext, vllm_server: LogprobsServer, trainer: Watched
) -> None:
    context = make_asking()
    window = hours_ago(3)
    add_window(context, window)
    pipeline.score(context)
    with context.database.transaction() as tx:
        tx.execute(
            """UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'BUY 7', 'SELL 7')"""
        )
    assert pipeline.train(context, trainer) is None
    assert states(context) == {window: "due"}
    vllm_server.asked.clear()
    pipeline.score(context)
    assert len(vllm_server.asked) == 1
    report = pipeline.train(context, trainer)
    assert report is not None
    assert report.result.metrics["logprobs_share"] == 1


def test_a_window_without_signal_is_not_asked_about(
    make_asking: MakeContext, vllm_server: LogprobsServer
) -> None:
    context = make_asking()
    window = hours_ago(3)
    for agent in range(3):
        add_trajectory(context, window, f"agent-{agent}", stepsJson=steps(100.0))
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {window: "skipped"}
    assert vllm_server.asked == []


def test_what_w_and_b_cannot_train_without_them_is_asked_about_again(
    make_asking: MakeContext, vllm_server: LogprobsServer
) -> None:
    """The server was away while the window was scored, and so was never asked."""
    with WandbServer() as wandb:
        there = {
            "trainer": "serverless",
            "base_model": OFFERED[0],
            "wandb_api_key": SecretStr(WANDB_KEY),
            "serverless_url": wandb.url,
        }
        away = make_asking(logprobs_url=f"http://127.0.0.1:{free_port()}/v1", **there)
        window = hours_ago(2)
        add_window(away, window)
        pipeline.score(away)
        with pytest.raises(NotRecorded):
            pipeline.train(away, ServerlessTrainer(WANDB_KEY))  # type: ignore[arg-type]
        assert states(away) == {window: "due"}
        let_waits_pass(away)
        back = make_asking(**there)
        assert pipeline.score(back) == [window]
        report = pipeline.train(back, ServerlessTrainer(WANDB_KEY))  # type: ignore[arg-type]
        assert report
        assert report.window_ids == [window]
        row = one(back, "SELECT attempts, last_error FROM rl.windows")
        assert row == {"attempts": 0, "last_error": None}


def test_a_judged_window_has_them_too(
    make_judged: MakeContext, vllm_server: LogprobsServer, base_model: str
) -> None:
    context = make_judged(logprobs_url=vllm_server.url, logprobs_model="base")
    windows = [hours_ago(hours) for hours in (5, 4, 3)]
    for window in windows:
        add_window(context, window)
    assert sorted(pipeline.score(context)) == windows
    assert len(query(context, "SELECT * FROM rl.logprobs")) == 18
