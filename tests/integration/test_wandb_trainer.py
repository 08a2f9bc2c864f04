"""A step at W&B: ART's real client against a local server of the same API."""

from __future__ import annotations

import inspect
import json
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("art")

from art.serverless.client import (
    Checkpoint,
    Checkpoints,
    Client,
    ExperimentalTrainingConfig,
    Model,
    Models,
    TrainingJob,
    TrainingJobEvent,
    TrainingJobEvents,
    TrainingJobs,
)

from babylon_tasks.errors import (
    BabylonError,
    CheckpointUnreadable,
    Final,
    RemoteUnavailable,
    Retryable,
    UserError,
)
from babylon_tasks.records.steps import (
    Call,
    Hyperparameters,
    JobNote,
    Logprobs,
    OpenJob,
    Progress,
    Remote,
    Sample,
    StepRequest,
    StepResult,
)
from babylon_tasks.settings import Settings
from babylon_tasks.training.wandb_jobs import OFFERED
from tests import wandb_server as wandb
from tests.wandb_server import KEY, Behaviour, WandbServer
from workers.trainer.wandb import client, job
from workers.trainer.wandb.trainer import ServerlessTrainer

NAME = "wandb-artifact:///team/babylon-rl/agent:step1"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(job, "MAX_POLL_SECONDS", 0.05)
    monkeypatch.setattr(job, "UNKNOWN_SECONDS", 0.3)


class Attempt:
    """One step of one window, and what the trainer said in it."""

    def __init__(self, server: WandbServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.said: list[Progress] = []
        self.parent: str | None = None

    @property
    def notes(self) -> list[JobNote]:
        return [progress.job for progress in self.said if progress.job is not None]

    @property
    def states(self) -> list[str]:
        return [note.state for note in self.notes]

    def step(
        self,
        job: OpenJob | None = None,
        samples: list[Sample] | None = None,
        key: str = KEY,
        **changes: Any,
    ) -> StepResult:
        path = self.folder / "samples.jsonl"
        rate = changes.pop("learning_rate", 1e-5)
        deviation = changes.pop("group_deviation", True)
        lines = [msgspec.json.encode(s) for s in (SAMPLES if samples is None else samples)]
        path.write_bytes(b"\n".join(lines))
        remote: dict[str, Any] = {"url": self.server.url, "lost_seconds": 20.0, **changes}
        request = StepRequest(
            model_name="agent",
            base_model=OFFERED[0],
            parent=self.parent,
            samples_path=str(path),
            scratch_dir=str(self.folder / "scratch"),
            output_dir=str(self.folder / "out"),
            seed=1,
            hyperparameters=Hyperparameters(
                rate, 5, 8, 16, 0.1, 0.3, 4096, 16384, group_deviation=deviation
            ),
            remote=Remote(
                **{"entity": None, "project": "babylon-rl", "usd_per_job": 1.5, "job": job} | remote
            ),
        )
        return ServerlessTrainer(key).step(request, self.said.append)


@pytest.fixture
def attempt(server: WandbServer, tmp_path: Path) -> Attempt:
    return Attempt(server, tmp_path)


def call(user: str, *ids: int) -> Call:
    return Call("You trade.", user, "BUY", Logprobs(ids, tuple(-0.5 for _ in ids)))


SAMPLES = [
    Sample("2025-01-15T10:00", "t-1", 0.2, [call("a", 1, 2), call("b", 3)]),
    Sample("2025-01-15T10:00", "t-2", 0.8, [call("c", 4), Call("", "d", "WAIT")]),
]


# --- a job that goes well --------------------------------------------------------------------


def test_a_step_is_one_job_and_its_result_names_what_w_and_b_serves(
    attempt: Attempt, server: WandbServer
) -> None:
    result = attempt.step()
    assert server.posts == 1
    assert attempt.notes == [
        JobNote("intent", remote_step=0),
        JobNote("posted", job_id="job-1"),
    ]
    assert result.inference_name == NAME
    assert result.cost_usd == 1.5
    assert result.optimizer_steps == 3
    assert result.loss == pytest.approx((0.5 + 0.25 + 0.5 / 3) / 3)
    assert result.metrics["grad_norm"] == 1.0
    assert result.metrics["remote_step"] == 1.0
    share = result.windows["2025-01-15T10:00"]
    assert (share.sequences, share.dropped, share.trainable_tokens) == (3, 0, 4)
    (file,) = (attempt.folder / "out").iterdir()
    assert json.loads(file.read_text()) == {
        "inference_name": NAME,
        "url": server.url,
        "model_id": "model-1",
        "remote_step": 1,
        "base_model": OFFERED[0],
        "job_id": "job-1",
    }


def test_what_is_sent_is_what_the_agent_saw_one_history_a_call(
    attempt: Attempt, server: WandbServer
) -> None:
    attempt.step()
    first, second = server.jobs[0].trajectories
    assert (first["reward"], second["reward"]) == (0.2, 0.8)
    assert second["additional_histories"] == []  # the other call has no log-probabilities
    (other,) = first["additional_histories"]
    system, user, choice = other["messages_and_choices"]
    assert system == {"role": "system", "content": "You trade."}
    assert user == {"role": "user", "content": "b"}
    assert choice["message"]["content"] == "BUY"
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"]) == ("token_id:3", -0.5)
    config = server.jobs[0].body["experimental_config"]
    assert config == {"learning_rate": 1e-5, "advantage_balance": 0.7, "scale_rewards": True}


def test_without_a_rate_it_is_small_and_the_deviation_is_as_set(
    attempt: Attempt, server: WandbServer
) -> None:
    attempt.step(learning_rate=None, group_deviation=False)
    config = server.jobs[0].body["experimental_config"]
    assert config == {"learning_rate": 1e-5, "advantage_balance": 0.7, "scale_rewards": False}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ART's, of tool calls
def test_turns_and_tools_are_sent_as_the_agent_saw_them(
    attempt: Attempt, server: WandbServer
) -> None:
    asked = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [asked]},
        {"role": "tool", "content": "12", "tool_call_id": "c1"},
    ]
    tools = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
    told = Call(
        "", "", "BUY", Logprobs((7,), (-0.5,)),
        messages=json.dumps(turns), tools=json.dumps(tools),
    )  # fmt: skip
    samples = [Sample("2025-01-15T10:00", "t-1", 0.2, [told, call("b", 3)]), SAMPLES[1]]
    attempt.step(samples=samples)
    sent = server.jobs[0].trajectories[0]
    *seen, choice = sent["messages_and_choices"]
    assert (seen, sent["tools"]) == (turns, tools)
    assert choice["message"]["content"] == "BUY"
    (other,) = sent["additional_histories"]
    assert other["messages_and_choices"][1] == {"role": "user", "content": "b"}
    assert other["tools"] is None


def test_progress_is_relayed(attempt: Attempt, server: WandbServer) -> None:
    attempt.step()
    told = [(p.done, p.total, p.loss) for p in attempt.said if p.phase == "train"]
    assert (1, 3, 0.5) in told
    assert told[-1] == (3, 3, pytest.approx(0.5 / 3))
    shares = [p.share for p in attempt.said]
    assert None not in shares
    assert shares == sorted(shares)
    last = attempt.said[-1]
    assert (last.phase, last.loss, last.share) == ("save", pytest.approx(0.5 / 3), job.SPAN[1])


def test_signs_of_life_come_while_a_job_waits(
    attempt: Attempt, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LIFE_SECONDS", 0.01)
    server.may_end.clear()
    threading.Timer(1.0, server.may_end.set).start()
    attempt.step()
    assert len(attempt.said) > 30


def test_the_next_step_goes_on_from_the_last(
    attempt: Attempt, server: WandbServer, tmp_path: Path
) -> None:
    attempt.step()
    (tmp_path / "out").rename(tmp_path / "parent")
    attempt.parent = str(tmp_path / "parent")
    result = attempt.step()
    assert result.inference_name == NAME.replace("step1", "step2")
    assert attempt.notes[2] == JobNote("intent", remote_step=1)
    assert len(server.models) == 1


# --- whether a job exists is not known -------------------------------------------------------


@pytest.mark.parametrize("fault", [wandb.error_after, wandb.reset_after, wandb.not_json])
def test_a_job_whose_answer_was_lost_is_found_by_the_step_it_made(
    attempt: Attempt, server: WandbServer, fault: Behaviour
) -> None:
    server.script = [fault]
    result = attempt.step()
    assert server.posts == 1
    assert attempt.notes == [JobNote("intent", remote_step=0)]
    assert result.inference_name == NAME
    assert result.loss is None


@pytest.mark.parametrize("fault", [wandb.error_before, wandb.reset_before])
def test_a_job_that_never_was_is_given_up_after_a_while(
    attempt: Attempt, server: WandbServer, fault: Behaviour
) -> None:
    server.script = [fault]
    with pytest.raises(Retryable, match="SERVERLESS_LOST_SECONDS"):
        attempt.step(lost_seconds=0.2)
    assert attempt.states == ["intent", "lost"]
    assert server.posts == 1
    attempt.step()
    assert server.posts == 2


# --- another attempt's job -------------------------------------------------------------------


def posted_and_dropped(attempt: Attempt, server: WandbServer) -> None:
    """A job that runs, and whose poster is gone."""
    server.may_end.clear()
    server.create_model(
        {"entity": None, "project": "babylon-rl", "name": "agent", "base_model": OFFERED[0]}
    )
    server.take_job({"model_id": "model-1", "trajectory_groups": []})


@pytest.mark.parametrize("job_id", ["job-1", None])
def test_an_earlier_job_is_followed_and_its_result_taken(
    attempt: Attempt, server: WandbServer, job_id: str | None
) -> None:
    posted_and_dropped(attempt, server)
    threading.Timer(0.3, server.may_end.set).start()
    result = attempt.step(OpenJob(0, job_id, 5.0, wanted=True))
    assert server.posts == 1
    assert attempt.notes == []
    assert result.inference_name == NAME
    assert (result.loss is None) == (job_id is None)


@pytest.mark.parametrize("job_id", ["job-1", None])
def test_a_job_that_is_not_wanted_any_more_ends_before_the_next_is_posted(
    attempt: Attempt, server: WandbServer, job_id: str | None
) -> None:
    posted_and_dropped(attempt, server)
    at_once: list[int] = []
    threading.Timer(0.3, lambda: (at_once.append(server.posts), server.may_end.set())).start()
    result = attempt.step(OpenJob(0, job_id, 5.0, wanted=False))
    assert at_once == [1]
    assert attempt.states == ["abandoned", "intent", "posted"]
    assert attempt.notes[1].remote_step == 1
    assert result.inference_name == NAME.replace("step1", "step2")


def test_an_earlier_job_without_an_id_is_given_up_by_its_age(
    attempt: Attempt, server: WandbServer
) -> None:
    with pytest.raises(Retryable, match="no answer came"):
        attempt.step(OpenJob(0, None, 3600.0, wanted=True))
    assert attempt.states == ["lost"]
    assert server.posts == 0


def test_a_job_that_w_and_b_does_not_know_is_given_up(
    attempt: Attempt, server: WandbServer
) -> None:
    with pytest.raises(Retryable, match="job-9 is not known"):
        attempt.step(OpenJob(0, "job-9", 0.0, wanted=True))
    assert attempt.states == ["lost"]


# --- failures --------------------------------------------------------------------------------


def test_a_failed_job_is_told_with_its_reason(attempt: Attempt, server: WandbServer) -> None:
    server.fail_with = ["out of memory on\nnode 7"]
    with pytest.raises(Retryable, match="job-1 failed: out of memory on node 7"):
        attempt.step()
    assert attempt.states == ["intent", "posted", "failed"]
    attempt.step()
    assert server.posts == 2


def test_a_job_that_ends_without_a_checkpoint_is_a_failure(
    attempt: Attempt, server: WandbServer
) -> None:
    server.moves = False
    with pytest.raises(Retryable, match="ended without a new checkpoint"):
        attempt.step()
    assert attempt.states == ["intent", "posted", "failed"]


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (400, Final, "W&B refuses the training job .400: .*too large"),
        (401, UserError, "WANDB_API_KEY"),
        (402, UserError, "payment"),
        (403, UserError, "WANDB_API_KEY"),
        (404, Final, "too large"),
        (409, RemoteUnavailable, "409"),
        (413, Final, "too large"),
        (422, Final, "too large"),
        (429, RemoteUnavailable, "429"),
    ],
)
def test_a_refused_job_is_noted_and_told(
    attempt: Attempt, server: WandbServer, status: int, error: type[BabylonError], says: str
) -> None:
    server.script = [wandb.refused(status, "the payload is too large")]
    with pytest.raises(error, match=says):
        attempt.step()
    assert attempt.states == ["intent", "refused"]
    assert server.posts == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UserError), (403, UserError), (404, UserError), (422, UserError),
        (429, RemoteUnavailable), (500, RemoteUnavailable), (503, RemoteUnavailable),
    ],
)  # fmt: skip
def test_nothing_is_posted_where_the_model_cannot_be_opened(
    attempt: Attempt, server: WandbServer, status: int, error: type[BabylonError]
) -> None:
    server.away = {"POST /v1/preview/models": status}
    with pytest.raises(error) as raised:
        attempt.step()
    assert "told to" in str(raised.value)
    assert KEY not in str(raised.value)
    assert (attempt.notes, server.posts) == ([], 0)


def test_a_server_that_is_away_is_nobodys_fault(attempt: Attempt) -> None:
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        attempt.step(url="http://127.0.0.1:1/v1")
    assert attempt.notes == []


@pytest.mark.parametrize("part", ["/events", "/checkpoints"])
def test_a_server_that_goes_away_while_a_job_runs_is_waited_for(
    attempt: Attempt, server: WandbServer, part: str
) -> None:
    server.may_end.clear()

    def come_back() -> None:
        server.may_end.set()
        server.away = {}

    def go() -> None:
        wandb.wait_until(lambda: server.jobs)
        server.away = {part: 503}
        threading.Timer(1.5, come_back).start()

    threading.Thread(target=go, daemon=True).start()
    result = attempt.step()
    assert result.inference_name == NAME
    assert server.posts == 1


def test_a_key_that_is_refused_while_a_job_runs_leaves_the_job_open(
    attempt: Attempt, server: WandbServer
) -> None:
    server.away = {"/events": 401}
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        attempt.step()
    assert attempt.states == ["intent", "posted"]


def test_a_wrong_key_is_not_shown(attempt: Attempt) -> None:
    with pytest.raises(UserError, match="WANDB_API_KEY") as raised:
        attempt.step(key="another-secret-key")
    assert "another-secret" not in str(raised.value)


def test_calls_that_are_too_long_are_left_out_and_counted(
    attempt: Attempt, server: WandbServer
) -> None:
    long = call("x" * 20_000, 1)
    samples = [msgspec.structs.replace(s, calls=[*s.calls, long]) for s in SAMPLES]
    result = attempt.step(samples=samples)
    assert (result.sequences, result.dropped_sequences) == (3, 2)
    alone = [msgspec.structs.replace(s, calls=[long]) for s in SAMPLES]
    with pytest.raises(Final, match="MAX_SEQUENCE_TOKENS"):
        attempt.step(samples=alone)
    assert server.posts == 1


def test_another_model_than_the_heads_is_refused(
    attempt: Attempt, server: WandbServer, tmp_path: Path
) -> None:
    attempt.step()
    (tmp_path / "out").rename(tmp_path / "parent")
    attempt.parent = str(tmp_path / "parent")
    with pytest.raises(UserError, match="WANDB_PROJECT"):
        attempt.step(project="another")
    attempt.parent = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointUnreadable):
        attempt.step()
    assert server.posts == 1


def test_a_model_made_from_another_base_is_refused(attempt: Attempt, server: WandbServer) -> None:
    body = {"entity": None, "project": "babylon-rl", "name": "agent", "base_model": OFFERED[1]}
    server.create_model(body)
    with pytest.raises(UserError, match="BASE_MODEL"):
        attempt.step()
    assert server.posts == 0


# --- the contract with the library -----------------------------------------------------------


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_arts_client_is_as_we_use_it() -> None:
    assert parameters(Client.__init__) >= {"api_key", "base_url"}
    assert parameters(Models.create) >= {
        "entity", "project", "name", "base_model", "return_existing"
    }  # fmt: skip
    assert parameters(Checkpoints.list) >= {"model_id", "order", "limit"}
    assert parameters(TrainingJobs.create) >= {
        "model_id", "trajectory_groups", "experimental_config"
    }  # fmt: skip
    assert parameters(TrainingJobEvents.list) >= {"training_job_id", "after"}
    assert set(Model.model_fields) >= {"id", "entity", "project", "name", "base_model"}
    assert "step" in Checkpoint.model_fields
    assert "id" in TrainingJob.model_fields
    assert set(TrainingJobEvent.model_fields) == {"id", "type", "data"}
    assert set(typing.get_args(TrainingJobEvent.model_fields["type"].annotation)) == {
        "training_started", "gradient_step", "training_ended", "training_failed"
    }  # fmt: skip
    assert set(typing.get_type_hints(ExperimentalTrainingConfig)) >= {
        "learning_rate", "advantage_balance", "scale_rewards"
    }  # fmt: skip


def test_arts_client_goes_to_the_default_address() -> None:
    client = Client(api_key="k")
    default = Settings.model_fields["serverless_url"].default
    assert str(client.base_url).rstrip("/") == default
