"""W&B as the trainer, on a real database: what is refused, what is remembered, who goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

pytest.importorskip("art")

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost, NotRecorded, RemoteUnavailable, TrainerDied, UserError
from babylon_tasks.local import ask
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.store import jobs
from babylon_tasks.training.wandb_jobs import OFFERED
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out, move_clock
from tests.integration.conftest import Died
from tests.rows import (
    add_trajectory,
    add_window,
    hours_ago,
    one,
    query,
    scored_windows,
    states,
    steps,
)
from tests.wandb_server import KEY, WandbServer, wait_until
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.trainer.wandb import job
from workers.trainer.wandb.trainer import ServerlessTrainer

NAME = "wandb-artifact:///team/babylon-rl/babylon-agent"
AGENTS = ("agent-0", "agent-1", "agent-2")


class InProcess:
    """The trainer without a process around it."""

    def step(self, request: StepRequest, on_beat: Callable[[Progress | None], None]) -> StepResult:
        return ServerlessTrainer(KEY).step(request, on_beat)

    def close(self) -> None:
        pass


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def on_wandb(
    make_context: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Context]:
    """Workers that train on `server`."""
    monkeypatch.setattr(job, "POLL_SECONDS", 0.02)

    def make(**changes: Any) -> Context:
        return make_context(
            **{
                "trainer": "serverless",
                "base_model": OFFERED[0],
                "wandb_api_key": SecretStr(KEY),
                "serverless_url": server.url,
                "serverless_usd_per_job": 2.0,
                **changes,
            }
        )

    return make


def dies_at(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The next note of this state, and no other, is the worker's death, before it is written."""
    real = jobs.note

    def note(tx: Any, claim: Any, step: int, sent: Any, said: Any) -> None:
        if said.state == state:
            monkeypatch.setattr(jobs, "note", real)
            raise Died
        real(tx, claim, step, sent, said)

    monkeypatch.setattr(jobs, "note", note)


def job_rows(context: Context) -> list[dict[str, Any]]:
    return query(context, "SELECT * FROM rl.jobs ORDER BY intended_at")


# --- a step ----------------------------------------------------------------------------------


def test_a_step_names_what_w_and_b_serves_and_keeps_its_job(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb()
    windows = scored_windows(context, 2, 3, recorded=True)
    report = pipeline.train(context, InProcess())
    assert report
    assert report.result.cost_usd == 2.0
    pipeline.publish(context)
    step = one(context, "SELECT * FROM rl.steps")
    assert (step["trainer"], step["window_ids"]) == ("serverless", windows)
    assert step["metrics"]["remote_step"] == 1
    remote = json.loads((Path(step["checkpoint"]) / "remote.json").read_text())
    assert remote["inference_name"] == f"{NAME}:step1"
    model = one(context, "SELECT * FROM trained_models")
    assert (model["storagePath"], model["status"]) == (f"{NAME}:step1", "deployed")
    (job,) = job_rows(context)
    assert (job["state"], job["job_id"], job["step"]) == ("done", "job-1", 1)
    assert job["token"] == step["token"]
    assert set(job["windows"]) == set(windows)
    scored_windows(context, 4, recorded=True)
    assert pipeline.train(context, InProcess())
    newest = one(context, "SELECT * FROM rl.steps WHERE step = 2")
    assert newest["metrics"]["inference_name"] == f"{NAME}:step2"


def test_a_price_of_gpus_says_nothing_about_a_step_at_w_and_b(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb(serverless_usd_per_job=None, gpu_usd_per_hour=2.0)
    scored_windows(context, 2, recorded=True)
    assert pipeline.train(context, InProcess())
    assert one(context, "SELECT cost_usd FROM rl.steps")["cost_usd"] is None


def test_the_trainer_process_has_the_key_and_waits_for_its_notes(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb()
    scored_windows(context, 2, recorded=True)
    process = TrainerProcess(
        TrainerOptions("serverless", None, "cpu-0", 1.0, 60.0, 60.0, wandb_api_key=SecretStr(KEY))
    )
    try:
        assert pipeline.train(context, process)
        command = Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.close()
    assert KEY not in command
    assert server.posts == 1
    assert [job["state"] for job in job_rows(context)] == ["done"]


# --- refused before anything is sent -----------------------------------------------------------


def test_a_base_model_that_w_and_b_does_not_offer_is_refused(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb(base_model="Qwen/Qwen2.5-0.5B-Instruct")
    scored_windows(context, 2, recorded=True)
    with pytest.raises(UserError, match=f"{OFFERED[0]} or {OFFERED[1]}, or TRAINER=torch"):
        pipeline.train(context, InProcess())
    assert server.paths == []


def test_traces_without_logprobs_are_refused_and_their_windows_stay(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb(max_step_tokens=1)
    windows = scored_windows(context, 2, 3)
    with pytest.raises(NotRecorded, match="LOGPROBS_URL"):
        pipeline.train(context, InProcess())
    assert server.paths == []
    assert states(context) == dict.fromkeys(windows, "scored")
    rows = query(context, "SELECT * FROM rl.windows")
    assert [row["attempts"] for row in rows] == [0, 0]
    assert all("LOGPROBS_URL" in row["last_error"] for row in rows)
    told = query(context, "SELECT outcome FROM rl.attempts WHERE stage = 'train'")
    assert [row["outcome"] for row in told] == ["given_back", "given_back"]


def test_a_window_without_logprobs_is_read_again_less_and_less_often(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    """Each look at it reads all its traces, and nobody may ever mend what it lacks."""
    context = on_wandb(retry_seconds=30)
    scored_windows(context, 3)
    move_clock(context, 10 * 3600)
    scored_windows(context, 2)
    with pytest.raises(NotRecorded):
        pipeline.train(context, InProcess())
    waits = query(
        context,
        """SELECT round(extract(epoch FROM not_before - due_at)) AS seconds
             FROM rl.windows ORDER BY window_id""",
    )
    assert 15 * 3600 <= waits[0]["seconds"] < 16 * 3600
    assert 30 <= waits[1]["seconds"] < 3600
    assert pipeline.train(context, InProcess()) is None


@pytest.mark.parametrize("max_step_tokens", [1, 1_000_000])
def test_windows_without_logprobs_do_not_hold_up_the_others(
    on_wandb: Callable[..., Context], server: WandbServer, max_step_tokens: int
) -> None:
    context = on_wandb(max_step_tokens=max_step_tokens)
    (old,) = scored_windows(context, 5)
    (new,) = scored_windows(context, 2, recorded=True)
    report = pipeline.train(context, InProcess())
    assert report
    assert report.window_ids == [new]
    assert states(context) == {old: "scored", new: "trained"}


def test_calls_and_trajectories_without_logprobs_are_left_out_and_counted(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb()
    window = hours_ago(2)
    recorded = add_window(context, window, recorded=True)
    add_trajectory(context, window, "another", stepsJson=steps(900))
    both = json.loads(steps(-900, recorded=True)) + json.loads(steps(-900, response="WAIT"))
    mixed = add_trajectory(context, window, "mixed", stepsJson=json.dumps(both))
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, InProcess())
    (job,) = server.jobs
    sent = {t["metadata"]["trajectory_id"]: t for t in job.trajectories}
    assert set(sent) == {*recorded, mixed}
    assert len(sent[mixed]["additional_histories"]) == 2
    funnel = one(context, "SELECT funnel FROM rl.windows")["funnel"]
    assert (funnel["without_logprobs"], funnel["sequences"], funnel["tokens"]) == (6, 12, 36)
    assert funnel["no_advantage"] == 0
    used = query(context, 'SELECT FROM trajectories WHERE "usedInTraining"')
    assert len(used) == 4


def test_what_was_done_badly_is_sent_with_its_tokens_beside_the_rest_of_its_run(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb()
    window = hours_ago(2)
    worst, _, _ = add_window(context, window, recorded=True)
    own = json.loads(steps(900, recorded=True))
    for number, told in enumerate(({"response": ""}, {"finish_reason": "length"}, {})):
        own[number]["llmCalls"][0].update(told, modelVersion="babylon-agent@0")
    mixed = add_trajectory(context, window, "mixed", stepsJson=json.dumps(own))
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, InProcess())
    (job,) = server.jobs
    good, badly = [t for t in job.trajectories if t["metadata"]["trajectory_id"] == mixed]
    rows = query(context, "SELECT trajectory_id AS id, score FROM rl.scores")
    scores = {row["id"]: row["score"] for row in rows}
    assert (good["reward"], badly["reward"]) == (scores[mixed], scores[worst])
    empty = badly["messages_and_choices"][-1]
    (cut,) = badly["additional_histories"]
    cut = cut["messages_and_choices"][-1]
    assert (empty["message"]["content"], empty["finish_reason"]) == ("", "stop")
    assert (cut["message"]["content"], cut["finish_reason"]) == ("BUY YES", "length")
    # The run counts once, by its own score.
    assert one(context, "SELECT trajectories FROM rl.steps")["trajectories"] == 4
    reward = one(context, 'SELECT "avgReward" AS mean FROM trained_models')["mean"]
    assert reward == pytest.approx(sum(scores.values()) / 4)


@contextmanager
def endpoint(context: Context, server: WandbServer) -> Iterator[str]:
    """Run an endpoint that has the key of this W&B, and yield its URL once it is ready."""
    env = {
        "DATABASE_URL": context.settings.postgres(),
        "BASE_MODEL": context.settings.base_model,
        "WANDB_API_KEY": KEY,
        "SERVERLESS_URL": server.url,
        "TRAIN_RL_LOCAL": "true",
    }
    with ask.serving(env) as url:
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        yield url


def test_what_wandb_trained_is_answered_by_the_lineages_name(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    """Through the endpoint, which has the key; its client has none."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("aiohttp")
    context = on_wandb()
    scored_windows(context, 2, recorded=True)
    assert pipeline.train(context, InProcess())
    pipeline.publish(context)
    with endpoint(context, server) as url:
        body = {"model": "babylon-agent", "messages": [{"role": "user", "content": "Now?"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "Wait for a dip."
    assert answer.json()["model"] == "babylon-agent@1"
    assert answer.headers["x-babylon-version"] == "babylon-agent-v1.0.0"
    assert server.asked[-1]["model"] == f"{NAME}:step1"
    assert KEY not in answer.text + str(answer.headers)


def test_with_w_and_b_alone_the_first_step_comes_from_what_the_base_model_answered(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    """No vLLM and no model here: the endpoint asks W&B for step 0, and remembers its tokens."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("aiohttp")
    context = on_wandb()
    with endpoint(context, server) as url:

        def answer_of(agent: str, asked: str) -> httpx.Response:
            messages = [{"role": "system", "content": "You trade."},
                        {"role": "user", "content": asked}]  # fmt: skip
            body = {"model": "babylon-agent", "messages": messages, "user": agent}
            answered = httpx.post(f"{url}/v1/chat/completions", json=body)
            assert answered.status_code == 200, answered.text
            return answered

        for number, agent in enumerate(AGENTS):
            answer = answer_of(agent, f"Step of {agent}?").json()
            assert answer["model"] == "babylon-agent@0"
            said = answer["choices"][0]["message"]["content"]
            call = {"systemPrompt": "You trade.", "userPrompt": f"Step of {agent}?",
                    "response": said}  # fmt: skip
            state = {"agentBalance": 1000, "agentPnL": 100.0 * number, "openPositions": 1}
            step = {"environmentState": state, "llmCalls": [call],
                    "action": {"actionType": "BUY_SHARES", "success": True}}  # fmt: skip
            add_trajectory(context, hours_ago(2), agent, stepsJson=json.dumps([step]))
        assert {body["model"] for body in server.asked} == {OFFERED[0]}
        wait_until(lambda: one(context, "SELECT count(*) AS n FROM rl.calls")["n"] == len(AGENTS))
        pipeline.produce(context)
        pipeline.score(context)
        assert pipeline.train(context, InProcess())
        pipeline.publish(context)
        wait_until(lambda: answer_of("a", "Now?").json()["model"] == "babylon-agent@1")
        assert server.asked[-1]["model"] == f"{NAME}:step1"
    tokens = [
        token
        for trajectory in server.jobs[0].trajectories
        for message in trajectory["messages_and_choices"]
        if "finish_reason" in message
        for token in message["logprobs"]["content"]
    ]
    assert len(tokens) == 5 * len(AGENTS)
    assert {(t["token"], t["logprob"]) for t in tokens} == {
        (f"token_id:{id_}", -0.5) for id_ in range(101, 106)
    }


def test_a_lineage_does_not_change_its_kind_of_trainer(
    on_wandb: Callable[..., Context], make_context: Callable[..., Context], server: WandbServer
) -> None:
    here = make_context(base_model=OFFERED[0])
    noop = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
    try:
        scored_windows(here, 2)
        assert pipeline.train(here, noop)
        context = on_wandb()
        scored_windows(context, 3, recorded=True)
        with pytest.raises(UserError, match="set TRAINER=noop, or MODEL_NAME to a new name"):
            pipeline.train(context, InProcess())
        assert server.paths == []
        there = on_wandb(model_name="other")
        scored_windows(there, 4, recorded=True)
        assert pipeline.train(there, InProcess())
        back = make_context(base_model=OFFERED[0], model_name="other")
        scored_windows(back, 5)
        with pytest.raises(UserError, match="set TRAINER=serverless"):
            pipeline.train(back, noop)
    finally:
        noop.close()


def test_w_and_b_away_blames_no_window(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb(max_attempts=1)
    (window,) = scored_windows(context, 2, recorded=True)
    server.away = {"/preview/models": 503}
    for _ in range(3):
        with pytest.raises(RemoteUnavailable):
            pipeline.train(context, InProcess())
    row = one(context, "SELECT * FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("scored", 0)
    assert "503" in row["last_error"]
    server.away = {}
    assert pipeline.train(context, InProcess())
    assert states(context) == {window: "trained"}


# --- somebody else goes on ---------------------------------------------------------------------


@pytest.mark.usefixtures("dying")
@pytest.mark.parametrize("alone", [True, False])
def test_a_job_whose_id_is_known_is_followed_by_the_next_worker(
    on_wandb: Callable[..., Context],
    server: WandbServer,
    alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = on_wandb(max_attempts=1)
    windows = scored_windows(context, *((2,) if alone else (2, 3, 4)), recorded=True)
    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.commit", _die)
        with pytest.raises(Died):
            pipeline.train(context, InProcess())
    (job,) = job_rows(context)
    assert (job["state"], job["job_id"]) == ("posted", "job-1")
    let_leases_run_out(context)
    later = scored_windows(context, 9, recorded=True)
    report = pipeline.train(on_wandb(), InProcess())
    assert report
    assert report.window_ids == windows  # all of them, and none beside
    assert server.posts == 1
    assert states(context) == {**dict.fromkeys(windows, "trained"), later[0]: "scored"}
    rows = query(context, "SELECT attempts FROM rl.windows")
    assert {row["attempts"] for row in rows} == {0}
    assert one(context, "SELECT state FROM rl.jobs")["state"] == "done"


def _die(*_: Any, **__: Any) -> None:
    raise Died


def test_a_trainer_that_dies_again_and_again_costs_no_second_job(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb(max_attempts=1)
    windows = scored_windows(context, 2, 3, recorded=True)

    def die(*_: Any) -> None:
        raise TrainerDied("the trainer was ended by SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr("workers.trainer.wandb.client.WandbClient.events", die)
        for _ in range(2):
            with pytest.raises(TrainerDied):
                pipeline.train(context, InProcess())
    rows = query(context, "SELECT attempts, may_share FROM rl.windows")
    assert rows == [{"attempts": 0, "may_share": None}] * 2
    report = pipeline.train(context, InProcess())
    assert report
    assert report.window_ids == windows
    assert server.posts == 1
    assert query(context, "SELECT FROM rl.attempts WHERE ended_at IS NULL") == []


def test_a_job_over_some_of_the_steps_windows_goes_on_too(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others were left out before it was posted: the trainer's death must not part its windows."""
    context = on_wandb()
    windows = scored_windows(context, 3, 4, 5, recorded=True)
    (unrecorded,) = scored_windows(context, 2)
    with context.database.transaction() as tx:  # a larger step failed before
        tx.execute("UPDATE rl.windows SET may_share = 4")

    def die(*_: Any) -> None:
        raise TrainerDied("the trainer was ended by SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr("workers.trainer.wandb.client.WandbClient.events", die)
        with pytest.raises(TrainerDied):
            pipeline.train(context, InProcess())
    report = pipeline.train(context, InProcess())
    assert report
    assert report.window_ids == sorted(windows)
    assert server.posts == 1
    assert states(context)[unrecorded] == "scored"


@pytest.mark.usefixtures("dying")
def test_a_job_whose_id_was_lost_is_found_by_the_step_it_made(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb()
    (window,) = scored_windows(context, 2, recorded=True)
    dies_at(monkeypatch, "posted")
    with pytest.raises(Died):
        pipeline.train(context, InProcess())
    (job,) = job_rows(context)
    assert (job["state"], job["job_id"]) == ("intent", None)
    let_leases_run_out(context)
    assert pipeline.train(on_wandb(), InProcess())
    assert server.posts == 1
    assert states(context) == {window: "trained"}
    assert one(context, "SELECT count(*) AS n FROM rl.steps")["n"] == 1


@pytest.mark.usefixtures("dying")
def test_nothing_is_posted_without_an_intent(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb()
    scored_windows(context, 2, recorded=True)
    dies_at(monkeypatch, "intent")
    with pytest.raises(Died):
        pipeline.train(context, InProcess())
    assert (server.posts, job_rows(context)) == (0, [])
    let_leases_run_out(context)
    assert pipeline.train(on_wandb(), InProcess())
    assert server.posts == 1


@pytest.mark.usefixtures("dying")
def test_an_intent_that_was_never_posted_is_posted_after_a_while(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb(serverless_lost_seconds=20.0)
    (window,) = scored_windows(context, 2, recorded=True)
    with monkeypatch.context() as patch:
        patch.setattr("workers.trainer.wandb.client.WandbClient.post_job", _die)
        with pytest.raises(Died):
            pipeline.train(context, InProcess())
    let_leases_run_out(context)
    assert pipeline.train(on_wandb(serverless_lost_seconds=20.0), InProcess())
    assert server.posts == 1
    assert [job["state"] for job in job_rows(context)] == ["lost", "done"]
    assert states(context) == {window: "trained"}


@pytest.mark.usefixtures("dying")
def test_a_job_about_traces_that_changed_is_abandoned_and_never_beside_the_next(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb()
    (window,) = scored_windows(context, 2, recorded=True)
    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.commit", _die)
        with pytest.raises(Died):
            pipeline.train(context, InProcess())
    pipeline.enqueue(context, window, scoring="correctness")
    pipeline.enqueue(context, window, scoring="heuristic")
    pipeline.score(context)
    assert one(context, "SELECT score_rev > 1 AS again FROM rl.windows")["again"]
    let_leases_run_out(context)
    assert pipeline.train(on_wandb(), InProcess())
    first, second = job_rows(context)
    assert (first["state"], second["state"]) == ("abandoned", "done")
    assert "step 1" in first["why"]
    assert second["remote_step"] == 1
    assert second["intended_at"] >= first["ended_at"]
    assert server.posts == 2
    assert one(context, "SELECT metrics FROM rl.steps")["metrics"]["remote_step"] == 2


@pytest.mark.usefixtures("dying")
def test_a_window_that_kills_its_worker_is_not_excused_by_anothers_open_job(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = on_wandb()
    (begun,) = scored_windows(context, 5, recorded=True)
    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.commit", _die)
        with pytest.raises(Died):
            pipeline.train(context, InProcess())
    let_leases_run_out(context)
    with context.database.transaction() as tx:  # its result cannot become a step any more
        tx.execute("UPDATE rl.windows SET state = 'skipped', agents = 99")
    (deadly,) = scored_windows(context, 2, recorded=True)
    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.training.step.collect", _die)
        with pytest.raises(Died):
            pipeline.train(context, InProcess())
    let_leases_run_out(context)
    report = pipeline.train(on_wandb(), InProcess())
    assert report
    rows = query(context, "SELECT window_id, attempts FROM rl.windows ORDER BY window_id")
    assert rows == [{"window_id": begun, "attempts": 0}, {"window_id": deadly, "attempts": 1}]


def test_a_failed_job_is_tried_again_and_then_its_window_fails(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    context = on_wandb(max_attempts=2)
    (window,) = scored_windows(context, 2, recorded=True)
    server.fail_with = ["bad node", "no space"]
    assert pipeline.train(context, InProcess()) is None
    row = one(context, "SELECT * FROM rl.windows")
    assert (row["state"], row["window_id"]) == ("failed", window)
    assert "job-2 failed: no space" in row["last_error"]
    assert [job["state"] for job in job_rows(context)] == ["failed", "failed"]


@pytest.mark.usefixtures("dying")
def test_a_zombie_posts_nothing_and_notes_nothing(
    on_wandb: Callable[..., Context], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease went to another before its intent was written."""
    zombie = on_wandb(heartbeat_seconds=60)
    scored_windows(zombie, 2, recorded=True)
    real = ServerlessTrainer.step

    def late(self: Any, request: StepRequest, tell: Any) -> StepResult:
        monkeypatch.setattr(ServerlessTrainer, "step", real)
        let_leases_run_out(zombie)
        assert pipeline.train(on_wandb(), InProcess())
        add_window(zombie, hours_ago(3), recorded=True)
        return real(self, request, tell)

    monkeypatch.setattr(ServerlessTrainer, "step", late)
    with pytest.raises(LeaseLost):
        pipeline.train(zombie, InProcess())
    assert server.posts == 1
    assert [job["state"] for job in job_rows(zombie)] == ["done"]


def test_a_job_that_runs_is_seen_to_its_end_before_a_window_by_name(
    on_wandb: Callable[..., Context], server: WandbServer
) -> None:
    """MODE=single asks for one window and a version: another's job gets neither."""
    context = on_wandb()
    server.away = {"/events": 401}
    (begun,) = scored_windows(context, 5, recorded=True)
    with pytest.raises(UserError):
        pipeline.train(context, InProcess())
    wait_until(lambda: server.jobs[0].ended)
    server.away = {}
    (asked,) = scored_windows(context, 2, recorded=True)
    first = pipeline.train(context, InProcess(), only=[asked], requested_version="v7.0.0")
    second = pipeline.train(context, InProcess(), only=[asked], requested_version="v7.0.0")
    assert first
    assert second
    assert (first.window_ids, second.window_ids) == ([begun], [asked])
    assert (first.version, second.version) == ("v1.0.0", "v7.0.0")
    assert server.posts == 2
