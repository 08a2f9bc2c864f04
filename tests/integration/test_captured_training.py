"""Training on what the endpoint remembers: the trace has texts alone, no tokens or versions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as changed
from datetime import UTC, datetime, timedelta
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

from babylon_tasks import pipeline
from babylon_tasks.cli.window_screen import funnel_lines
from babylon_tasks.cockpit.story import read_story
from babylon_tasks.errors import NotRecorded, UserError
from babylon_tasks.records.captured import CapturedCall
from babylon_tasks.records.steps import Call, Logprobs, Sample
from babylon_tasks.training.replay import order_replay, replay
from babylon_tasks.training.wandb_jobs import OFFERED
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.captured import answer, remember
from tests.clock import let_waits_pass
from tests.integration.test_train import Scripted
from tests.logprobs_server import LogprobsServer
from tests.rows import add_trajectory, commit_steps, hours_ago, one, query
from tests.unit.tiny import make_tiny_model
from tests.wandb_server import KEY as WANDB_KEY
from tests.wandb_server import WandbServer
from workers.gpu.client import TrainerProcess
from workers.trainer.torch.difference import compare_adapters
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.wandb import job
from workers.trainer.wandb.trainer import ServerlessTrainer

MakeContext = Callable[..., Context]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # litellm's own
    pytest.mark.filterwarnings("ignore:cov"),  # ART correlates what was recorded: nothing
]

RECENT = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def torch_trainer() -> TorchTrainer:
    return TorchTrainer("cpu-0")


def call(agent: int, turn: int, response: str | None = None, **more: Any) -> dict[str, Any]:
    """A call as the app records it; the agent's first is a BUY."""
    said = f"BUY {agent * 7 + turn} now" if response is None else response
    asked = {"systemPrompt": "You trade.", "userPrompt": f"Agent {agent}, turn {turn}?"}
    return {**asked, "response": said, **more}


def run_of(agent: int, calls: Sequence[dict[str, Any]], pnl: float | None = None) -> str:
    state = {"agentPnL": 300.0 * agent - 200 if pnl is None else pnl}
    action = {"actionType": "BUY_SHARES", "success": True}
    return json.dumps([{"environmentState": state, "llmCalls": list(calls), "action": action}])


def add_window(context: Context, window: str, agents: int = 3) -> list[str]:
    """A window of agents with two calls each; the trajectory ids."""
    return [
        add_trajectory(
            context,
            window,
            f"agent-{agent}",
            stepsJson=run_of(agent, [call(agent, 0), call(agent, 1)]),
        )
        for agent in range(agents)
    ]


def captured(player: int, turn: int, response: str | None = None, **changes: Any) -> CapturedCall:
    """The answer that `call` records."""
    recorded = call(player, turn, response)
    fields = {"agent": f"agent-{player}", "at": RECENT, **changes}
    return answer(recorded["userPrompt"], recorded["response"], **fields)


def score(context: Context, window: str) -> dict[str, int]:
    """Score the window; the funnel."""
    pipeline.produce(context)
    assert pipeline.score(context, [window]) == [window]
    row = one(
        context,
        "SELECT funnel FROM rl.windows WHERE window_id = %s AND model_name = %s",
        window,
        context.lineage.name,
    )
    funnel: dict[str, int] = row["funnel"]
    return funnel


def trained(context: Context, trainer: TrainerProcess) -> dict[str, Sample]:
    """The samples of the next step by trajectory; of two, what was done badly."""
    found: list[Sample] = []
    assert pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    return {sample.trajectory_id: sample for sample in found}


def as_answered(base_model: str, agents: int = 3) -> list[CapturedCall]:
    """Each call's own tokens, and log-probabilities that are not quite the base model's."""
    model = LanguageModel(base_model, torch.device("cpu"))
    model.add_adapter(8, 16, seed=1)
    answers = []
    for agent in range(agents):
        for turn in range(2):
            recorded = call(agent, turn)
            messages = [
                {"role": "system", "content": recorded["systemPrompt"]},
                {"role": "user", "content": recorded["userPrompt"]},
            ]
            prompt, said = model.chat.encode([model.chat.prompt(messages), recorded["response"]])
            said += model.chat.end_ids
            tokens = torch.tensor([prompt + said])
            predicts = torch.arange(tokens.shape[1])[None] >= len(prompt) - 1
            predicts[0, -1] = False
            with torch.no_grad():
                values, _ = model.logprobs(tokens, predicts)
            logprobs = (values * 0.9).tolist()  # float32, as servers have them
            answers.append(captured(agent, turn, logprobs=logprobs, token_ids=tuple(said)))
    return answers


# --- exact ratios ---


def test_a_step_on_captured_answers_is_that_on_recorded_log_probabilities(
    make_context: MakeContext, base_model: str, torch_trainer: TorchTrainer, tmp_path: Path
) -> None:
    """Two lineages train on the captured window; a third one after the trace has them itself."""
    window = hours_ago(3)
    shape: dict[str, Any] = {
        "trainer": "torch", "base_model": base_model, "learning_rate": 0.01, "warmup_steps": 0,
    }  # fmt: skip
    names = ("babylon-agent", "second", "third")
    contexts = [
        make_context(**shape, model_name=name, primary=name == "babylon-agent") for name in names
    ]
    ids = add_window(contexts[0], window)
    answers = as_answered(base_model)
    remember(contexts[0], answers)
    reports = []
    for context in contexts:
        if context.lineage.name == "third":
            told = dict(zip([(n, turn) for n in range(3) for turn in (0, 1)], answers, strict=True))
            record_logprobs(context, ids, told)
            query(context, "DELETE FROM rl.calls RETURNING 1")
        funnel = score(context, window)
        reports.append(pipeline.train(context, torch_trainer))
        counts = [funnel.get(name) for name in ("captured", "uncaptured")]
        assert counts == ([None, None] if context.lineage.name == "third" else [6, 0])
    metrics = [report.result.metrics for report in reports if report]
    assert len(metrics) == 3
    for each in metrics:
        assert (each["logprobs_share"], each["logprobs_misfit"]) == (1, 0)
        assert 0.3 < each["ratio_mean"] < 0.95
    digests = query(context, "SELECT recipe -> 'samples' ->> 'sha256' AS sha FROM rl.steps")
    assert len({row["sha"] for row in digests}) == 1
    folders = [Path(report.checkpoint) for report in reports if report]
    for other in folders[1:]:
        difference = compare_adapters(folders[0], other)
        assert (difference.differing, difference.largest) == (0, 0.0)
        assert difference.tensors > 10
    assert query(context, "SELECT * FROM rl.logprobs") == []


def record_logprobs(
    context: Context, ids: Sequence[str], answers: dict[tuple[int, int], CapturedCall]
) -> None:
    """Let the app have recorded log-probabilities itself."""
    for agent, trajectory_id in enumerate(ids):
        calls = []
        for turn in (0, 1):
            given = answers[agent, turn]
            content = [
                {"token": f"token_id:{token}", "logprob": value}
                for token, value in zip(given.token_ids, given.logprobs, strict=True)
            ]
            calls.append(
                call(agent, turn, logprobs={"content": content}, modelVersion="babylon-agent@1")
            )
        with context.database.transaction() as tx:
            tx.execute(
                'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s',
                [run_of(agent, calls), trajectory_id],
            )


def test_a_captured_step_is_made_again_while_its_answers_are_kept(
    make_context: MakeContext, base_model: str, torch_trainer: TorchTrainer, tmp_path: Path
) -> None:
    context = make_context(trainer="torch", base_model=base_model, learning_rate=0.01)
    window = hours_ago(3)
    add_window(context, window)
    remember(context, as_answered(base_model))
    score(context, window)
    assert pipeline.train(context, torch_trainer)
    later = datetime.now(UTC) + timedelta(hours=1)
    remember(context, [changed(each, at=later, step=7) for each in as_answered(base_model)])
    fleet = Fleet(context.database, context.settings, context.holder)
    done = replay(order_replay(fleet, None, "1"), torch_trainer, tmp_path)
    assert compare_adapters(done.files_then, done.files_now).differing == 0
    query(context, "DELETE FROM rl.calls RETURNING 1")
    with pytest.raises(UserError, match="has other scores or log-probabilities"):
        replay(order_replay(fleet, None, "1"), torch_trainer, tmp_path)


# --- the join ---


def test_other_texts_find_nothing_and_are_counted(
    context: Context, trainer: TrainerProcess
) -> None:
    window = hours_ago(3)
    ids = add_window(context, window)
    add_trajectory(context, window, "agent-9", stepsJson=run_of(9, [call(9, 0, " \nBUY 63 now ")]))
    answers = [captured(agent, turn) for agent in range(2) for turn in range(2)]
    answers[1] = captured(0, 1, "SELL")  # the app has changed what it recorded
    remember(context, [*answers, captured(9, 0)])
    funnel = score(context, window)
    assert (funnel["calls"], funnel["captured"], funnel["uncaptured"]) == (7, 4, 3)
    story = read_story(context, window, with_scores=False)
    lines = funnel_lines(story.rows, story.row["funnel"])
    assert any("the endpoint remembers 4, not 3" in line.text for line in lines)
    samples = trained(context, trainer)
    found = [[bool(each.logprobs) for each in samples[id_].calls] for id_ in ids]
    assert found == [[True, False], [True, True], [False, False]]


def test_the_answer_of_the_same_agent_and_the_last_before_the_trace_wins(
    context: Context, trainer: TrainerProcess
) -> None:
    """All agents were asked the same; each answered in several hours, and by several versions."""
    window = hours_ago(3)
    written = datetime.now(UTC).replace(tzinfo=None)
    same = call(0, 0)
    ids = [
        add_trajectory(
            context, window, f"agent-{n}", createdAt=written, stepsJson=run_of(n, [same])
        )
        for n in range(3)
    ]
    now = written.replace(tzinfo=UTC)
    answers = [
        (n, now - timedelta(minutes=minutes), -0.125 * (n + 1) - minutes / 64)
        for n in (0, 1)
        for minutes in (64, 2, -2, 16)
    ]
    remember(
        context,
        [captured(0, 0, agent=f"agent-{n}", at=at, logprobs=[value]) for n, at, value in answers]
        + [captured(0, 0, agent=None, at=now - timedelta(minutes=1), logprobs=[-8.0])],
    )
    score(context, window)
    samples = trained(context, trainer)
    values = [samples[id_].calls[0].logprobs for id_ in ids]
    assert [each and each.values for each in values] == [
        (-0.125 - 2 / 64,), (-0.25 - 2 / 64,), (-8.0,),
    ]  # fmt: skip


def test_what_an_agent_was_answered_is_not_anothers(
    context: Context, trainer: TrainerProcess
) -> None:
    """Another model may have said the same to the same prompt; names that no trace has fit all."""
    window = hours_ago(3)
    ids = [
        add_trajectory(context, window, f"agent-{n}", stepsJson=run_of(n, [call(0, 0), call(0, 1)]))
        for n in range(2)
    ]
    remember(context, [captured(0, 0), captured(0, 1, agent="the bot of agent-0")])
    funnel = score(context, window)
    assert (funnel["captured"], funnel["uncaptured"]) == (3, 1)
    samples = trained(context, trainer)
    found = [[bool(each.logprobs) for each in samples[id_].calls] for id_ in ids]
    assert found == [[True, True], [False, True]]


def test_versions_are_known_without_a_change_of_the_app(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    """What the endpoint remembers counts for staleness, and for what a version did badly."""
    context = make_context(max_staleness=1)
    commit_steps(context, trainer, 3)
    window = hours_ago(9)
    calls = {
        0: [call(0, 0), call(0, 1)],
        1: [call(1, 0), call(1, 1, "")],
        2: [
            call(2, 0),
            call(2, 0),
            call(2, 1, "BUY, and hold it f"),
            call(2, 2, '{"action": "BU'),
        ],
        3: [call(3, 0), call(3, 1, ""), call(3, 2, modelVersion="v1.0.1")],
    }
    ids = [
        add_trajectory(context, window, f"agent-{n}", stepsJson=run_of(n, some))
        for n, some in calls.items()
    ]
    foreign = {"lineage": "another", "step": 1}
    remember(
        context,
        [
            captured(0, 0, step=3), captured(0, 1, step=1),  # the second is too old
            captured(1, 0, step=3), captured(1, 1, "", step=3),
            captured(2, 0, step=2),
            captured(2, 1, "BUY, and hold it f", step=2, finish_reason="length"),
            captured(2, 2, '{"action": "BU', step=0),  # which the model ended so
            captured(3, 0, **foreign), captured(3, 1, "", **foreign), captured(3, 2, **foreign),
        ],
    )  # fmt: skip
    funnel = score(context, window)
    row = one(context, "SELECT by_version FROM rl.windows WHERE window_id = %s", window)
    assert row["by_version"] == {
        "babylon-agent@0": {"runs": 1, "calls": 1, "badly": 1},
        "v1.0.0": {"runs": 1, "calls": 1, "badly": 0},
        "v1.0.1": {"runs": 2, "calls": 4, "badly": 1},
        "v1.0.2": {"runs": 2, "calls": 3, "badly": 1},
    }
    assert (funnel["floored_calls"], funnel["empty"], funnel["repeated"]) == (3, 1, 1)
    assert funnel.get("truncated", 0) == 0
    found: list[Sample] = []
    assert pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    said = {
        (sample.trajectory_id, each.response): each.ended for sample in found
        for each in sample.calls
    }  # fmt: skip
    lowest = min(sample.reward for sample in found)
    assert {s.reward for s in found if s.calls[0].ended in (True, False)} == {lowest}
    del said[ids[3], "BUY 23 now"]  # v1.0.1, as the trace says
    unset = {key for key, ended in said.items() if ended not in (True, False)}
    assert unset == {(ids[0], "BUY 0 now"), (ids[1], "BUY 7 now"), (ids[2], "BUY 14 now"),
                     (ids[3], "BUY 21 now")}  # fmt: skip
    assert {key: ended for key, ended in said.items() if key not in unset} == {
        (ids[1], ""): True,
        (ids[2], "BUY, and hold it f"): False,
    }  # the base model's is three steps old
    metrics = one(context, "SELECT metrics FROM rl.steps WHERE step = 4")["metrics"]
    assert (metrics["staleness_known"], metrics["staleness_max"]) == (6, 1)
    assert funnel["captured"] == 7


def test_how_an_answer_ended_is_known(context: Context, trainer: TrainerProcess) -> None:
    """Long for its limit, but ended by the model; and a call of a tool, recorded as nothing."""
    window = hours_ago(2)
    long = "and so on " * 80
    ids = [
        add_trajectory(context, window, "agent-0", stepsJson=run_of(0, [
            call(0, 0), call(0, 1, long, maxTokens=200), call(0, 2, ""),
            call(0, 3, long, maxTokens=200),
        ])),
        add_trajectory(context, window, "agent-1", stepsJson=run_of(1, [call(1, 0)])),
    ]  # fmt: skip
    remember(
        context,
        [
            captured(0, 0, step=0), captured(0, 1, long, step=0),
            captured(0, 2, "", step=0, finish_reason="tool_calls"),
            captured(0, 3, long, step=0, finish_reason="length"), captured(1, 0, step=0),
        ],
    )  # fmt: skip
    funnel = score(context, window)
    assert (funnel["floored_calls"], funnel["truncated"], funnel["empty"]) == (1, 1, 1)
    found: list[Sample] = []
    assert pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    bad = [each for sample in found for each in sample.calls if each.ended in (True, False)]
    assert [(each.response, each.ended, bool(each.logprobs)) for each in bad] == [
        (long, False, True)
    ]
    assert {sample.trajectory_id for sample in found} == set(ids)


# --- beside a server of log-probabilities ---


def test_a_server_is_asked_for_the_rest_only(
    make_context: MakeContext, base_model: str, trainer: TrainerProcess
) -> None:
    with LogprobsServer(base_model) as server:
        server.models["base"] = None
        context = make_context(
            base_model=base_model, logprobs_url=server.url, logprobs_model="base"
        )
        window = hours_ago(3)
        ids = add_window(context, window)
        remember(context, [captured(0, 0), captured(1, 1)])
        score(context, window)
        assert len(server.asked) == 4
        assert len(query(context, "SELECT * FROM rl.logprobs")) == 4
        samples = trained(context, trainer)
    given = [each.logprobs for id_ in ids for each in samples[id_].calls]
    assert all(given)
    assert [each == Logprobs((11, 12), (-0.5, -0.25)) for each in given] == [
        True, False, False, True, False, False,
    ]  # fmt: skip
    recipe = one(context, "SELECT recipe FROM rl.steps")["recipe"]
    assert recipe["samples"]["attached"] == 4


# --- W&B as the trainer ---


class InProcess:
    """The trainer without a process around it."""

    def step(self, request: Any, on_beat: Any) -> Any:
        return ServerlessTrainer(WANDB_KEY).step(request, on_beat)

    def close(self) -> None:
        pass


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.setattr(job, "POLL_SECONDS", 0.02)
    with WandbServer() as running:
        yield running


def test_w_and_b_trains_on_captured_answers(
    make_context: MakeContext, wandb_server: WandbServer
) -> None:
    """Without them nothing is sent; with some, the others are left out."""
    context = make_context(
        trainer="serverless", base_model=OFFERED[0], wandb_api_key=SecretStr(WANDB_KEY),
        serverless_url=wandb_server.url, retry_seconds=0,
    )  # fmt: skip
    window = hours_ago(3)
    add_window(context, window)
    funnel = score(context, window)
    assert "captured" not in funnel
    with pytest.raises(NotRecorded, match="CAPTURE_CALLS"):
        pipeline.train(context, InProcess())
    assert wandb_server.posts == 0
    remember(context, [captured(0, 0), captured(1, 0), captured(1, 1), captured(2, 1)])
    let_waits_pass(context)
    report = pipeline.train(context, InProcess())
    assert report is not None
    assert wandb_server.posts == 1
    assert report.result.sequences == 4
    row = one(context, "SELECT state, funnel FROM rl.windows")
    assert (row["state"], row["funnel"]["without_logprobs"]) == ("trained", 2)


def test_a_call_without_a_system_prompt_is_found(context: Context, trainer: TrainerProcess) -> None:
    """And one that the app recorded as messages, with parts."""
    from babylon_tasks.records.call_hashes import prompt_hash

    user = {"role": "user", "content": [{"type": "text", "text": "Now?"}]}
    shapes: list[dict[str, Any]] = [
        {"userPrompt": "Now?", "response": "BUY"},
        {"messages": [user], "response": " BUY"},
        {"messages": [user, {"role": "assistant", "content": "BUY"}]},
    ]
    window = hours_ago(2)
    for agent, shape in enumerate(shapes):
        add_trajectory(context, window, f"agent-{agent}", stepsJson=run_of(agent, [shape]))
    remember(context, [answer(agent=None, prompt_hash=prompt_hash([user]))])
    assert score(context, window)["captured"] == 3
    calls = [each for sample in trained(context, trainer).values() for each in sample.calls]
    assert calls[0].logprobs == Logprobs((11, 12), (-0.5, -0.25))
    assert isinstance(calls[0], Call)
