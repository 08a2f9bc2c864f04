"""A head that is moved by hand: what is given up, taken back, served, and trained again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import (
    CheckpointRemoved,
    LeaseLost,
    ServerUnavailable,
    StaleClaim,
    UserError,
)
from babylon_tasks.intake import stage as intake
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import StepRequest, Trainer
from babylon_tasks.store import heads, transitions
from babylon_tasks.training.reset import reset
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import wait_until_blocked
from tests.rows import (
    add_request,
    add_trajectory,
    add_window,
    commit_steps,
    hours_ago,
    one,
    position,
    query,
    scored_windows,
    states,
    steps,
)

OWN = "babylon-agent"


def fleet_of(context: Context) -> Fleet:
    return Fleet(context.database, context.settings, context.holder)


def tree(context: Context, name: str = OWN) -> dict[int, tuple[int, bool]]:
    """Each step's parent, and whether it was given up."""
    rows = query(context, "SELECT * FROM rl.steps WHERE model_name = %s ORDER BY step", name)
    return {row["step"]: (row["parent_step"], row["given_up_at"] is not None) for row in rows}


def models(context: Context) -> dict[str, str]:
    """The app's versions."""
    rows = query(context, "SELECT version, status FROM trained_models ORDER BY version")
    return {row["version"]: row["status"] for row in rows}


def windows_of_steps(context: Context, name: str = OWN) -> dict[str, int | None]:
    rows = query(context, "SELECT * FROM rl.windows WHERE model_name = %s", name)
    return {row["window_id"]: row["trained_step"] for row in rows}


def train(context: Context, trainer: Trainer, publish: bool = True) -> int:
    """One step over whatever is due; its number."""
    pipeline.score(context)
    report = pipeline.train(context, trainer)
    assert report
    if publish:
        pipeline.publish(context)
    return report.step


# --- there and back ---------------------------------------------------------------------------


def test_the_last_steps_were_bad(context: Context, trainer: Trainer) -> None:
    """Reset, retry, go on."""
    commit_steps(context, trainer, 5)
    report = reset(context, "v1.0.1", "a broken feed")
    assert (report.from_step, report.to_step, report.version) == (5, 2, "v1.0.1")
    assert report.moved.given_up == {n: [hours_ago(n + 1)] for n in (3, 4, 5)}
    assert report.moved.taken_back == {}
    assert position(context) == (2, 2)
    archived = dict.fromkeys(("v1.0.2", "v1.0.3", "v1.0.4"), "archived")
    assert models(context) == {"v1.0.0": "ready", "v1.0.1": "deployed", **archived}
    moved = one(context, "SELECT * FROM rl.resets")
    assert (moved["from_step"], moved["to_step"], moved["why"]) == (5, 2, "a broken feed")
    assert moved["holder"] == "test:1"
    assert query(context, "SELECT FROM rl.leases") == []
    # What they trained stays trained, until somebody says otherwise.
    assert set(states(context).values()) == {"trained"}
    assert pipeline.train(context, trainer) is None
    assert intake.retry_steps(context, ["4-99"]) == [hours_ago(6), hours_ago(5)]
    assert train(context, trainer) == 6
    assert tree(context) == {
        1: (0, False), 2: (1, False), 3: (2, True), 4: (3, True), 5: (4, True), 6: (2, False)
    }  # fmt: skip
    assert position(context) == (6, 6)
    assert models(context) == {
        "v1.0.0": "ready", "v1.0.1": "ready", **archived, "v1.0.5": "deployed"
    }  # fmt: skip
    again = windows_of_steps(context)
    assert [again[hours_ago(n + 1)] for n in (1, 2, 3, 4, 5)] == [1, 2, 3, 6, 6]


def test_forward_to_a_branch_that_was_given_up(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 3)
    reset(context, "1", "try otherwise")
    intake.retry_steps(context, ["2"])
    assert train(context, trainer) == 4  # over the window of step 2
    assert windows_of_steps(context)[hours_ago(3)] == 4
    report = reset(context, "3", "the first one was better")
    assert report.moved.given_up == {4: [hours_ago(3)]}
    assert set(report.moved.taken_back) == {2, 3}
    assert position(context) == (3, 3)
    assert models(context) == {
        "v1.0.0": "ready", "v1.0.1": "ready", "v1.0.2": "deployed", "v1.0.3": "archived"
    }  # fmt: skip
    # The way to the head has trained it, so it is no window of step 4 any more.
    assert windows_of_steps(context) == {hours_ago(n + 1): n for n in (1, 2, 3)}
    assert intake.retry_steps(context, ["4"]) == []
    commit_steps(context, trainer, 1)
    assert tree(context)[5] == (3, False)
    assert models(context)["v1.0.4"] == "deployed"


def test_what_was_never_published_waits_for_it_again(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 1)
    commit_steps(context, trainer, 3, publish=False)
    reset(context, "2", "one")
    assert position(context) == (2, 1)
    waits = {"v1.0.0": "deployed", "v1.0.1": "training"}
    assert models(context) == {**waits, "v1.0.2": "archived", "v1.0.3": "archived"}
    reset(context, "4", "two")
    assert position(context) == (4, 1)
    assert models(context) == {**waits, "v1.0.2": "training", "v1.0.3": "training"}
    assert pipeline.publish(context) == ["v1.0.1", "v1.0.2", "v1.0.3"]
    assert list(models(context).values()) == ["ready", "ready", "ready", "deployed"]


def test_a_step_that_serves_and_is_not_on_the_way_serves_no_more(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 3)
    reset(context, "1", "back")
    intake.retry_steps(context, ["3"])
    train(context, trainer, publish=False)  # 4, after 1
    assert position(context) == (4, 1)
    pipeline.publish(context)
    assert position(context) == (4, 4)
    reset(context, "2", "between")
    assert position(context) == (2, 2)
    assert models(context) == {
        "v1.0.0": "ready", "v1.0.1": "deployed", "v1.0.2": "archived", "v1.0.3": "archived"
    }  # fmt: skip
    reset(context, "0", "all of it")
    assert position(context) == (0, 0)
    assert set(models(context).values()) == {"archived"}
    pipeline.enqueue(context, hours_ago(3))
    intake.retry_steps(context, ["1"])
    assert train(context, trainer) == 5
    assert tree(context)[5] == (0, False)
    assert parent_of(context, 5) is None


def trainer_state(context: Context, step: int, name: str = OWN) -> dict[str, Any]:
    """What the trainer wrote beside the weights of a step."""
    row = one(
        context, "SELECT checkpoint FROM rl.steps WHERE model_name = %s AND step = %s", name, step
    )
    told: dict[str, Any] = json.loads((Path(row["checkpoint"]) / "trainer_state.json").read_text())
    return {**told, "folder": Path(row["checkpoint"])}


def parent_of(context: Context, step: int, name: str = OWN) -> str | None:
    """The folder from which the trainer of a step started."""
    parent: str | None = trainer_state(context, step, name)["parent"]
    return parent


def test_what_was_made_due_again_is_trained_by_the_way_once_more(
    context: Context, trainer: Trainer
) -> None:
    """Due, scored, failed or skipped: a step on the way to the head has it."""
    commit_steps(context, trainer, 6)
    reset(context, "1", "back")
    intake.retry_steps(context, ["2", "3", "4", "5"])
    ids = [hours_ago(n + 1) for n in range(2, 7)]
    pipeline.score(context, ids[1:4])
    query(
        context, "UPDATE rl.windows SET state = 'failed' WHERE window_id = %s RETURNING 1", ids[2]
    )
    query(
        context, "UPDATE rl.windows SET state = 'skipped' WHERE window_id = %s RETURNING 1", ids[3]
    )
    before = states(context)
    assert [before[window] for window in ids] == ["due", "scored", "failed", "skipped", "trained"]
    reset(context, "5", "forward")
    assert set(states(context).values()) == {"trained"}
    assert windows_of_steps(context) == {hours_ago(n + 1): n for n in range(1, 7)}
    assert pipeline.train(context, trainer) is None
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", ids[0])
    committed = one(context, "SELECT committed_at FROM rl.steps WHERE step = 2")["committed_at"]
    assert (row["attempts"], row["trained_at"]) == (0, committed)


def test_a_request_that_waits_for_a_window_is_answered(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 2)
    reset(context, "1", "back")
    intake.retry_steps(context, ["2"])
    add_request(context, "batch", hours_ago(3), "v5.0.0")
    pipeline.produce(context)
    assert windows_of_steps(context)[hours_ago(3)] is None
    reset(context, "2", "forward")
    batch = one(context, "SELECT * FROM training_batches WHERE \"batchId\" = 'batch'")
    assert (batch["status"], batch["modelVersion"]) == ("completed", "v1.0.1")


def test_a_request_for_a_window_that_a_given_up_step_trained(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 2)
    reset(context, "1", "back")
    add_request(context, "batch", hours_ago(3), "v5.0.0")
    pipeline.produce(context)
    batch = one(context, "SELECT * FROM training_batches WHERE \"batchId\" = 'batch'")
    assert batch["status"] == "failed"
    assert "was trained by step 2, which was given up: `babylon windows retry" in batch["error"]


def test_an_answers_age_counts_the_steps_between(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """Not the difference of the numbers: 1 is right before 5, and 3 is two steps off the way."""
    context = make_context()
    commit_steps(context, trainer, 4)
    reset(context, "1", "back")
    window = hours_ago(30)
    add_window(context, window, agents=2)
    for version in ("v1.0.0", "v1.0.2"):
        calls = json.loads(steps(900, count=1))
        calls[0]["llmCalls"][0]["modelVersion"] = version
        add_trajectory(context, window, f"of-{version}", stepsJson=json.dumps(calls))
    pipeline.enqueue(context, window)
    assert train(context, trainer) == 5
    metrics = one(context, "SELECT metrics FROM rl.steps WHERE step = 5")["metrics"]
    assert (metrics["staleness_known"], metrics["staleness_max"]) == (2.0, 2.0)
    assert metrics["staleness_mean"] == 1.0


def test_a_fork_after_its_parent_was_reset_below_it(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(keep_checkpoints=1)
    fleet = fleet_of(context)
    commit_steps(context, trainer, 4)
    lineage_changes.fork(fleet, f"{OWN}@4", "fork", [])
    reset(context, "3", "back")
    commit_steps(context, trainer, 4)  # 5 to 8: number 4 is old by now, and given up
    fork = fleet.context("fork")
    assert one(context, "SELECT removed_at FROM rl.steps WHERE step = 4")["removed_at"] is None
    pipeline.produce(fork)
    assert train(fork, trainer) == 5
    assert Path(str(parent_of(context, 5, "fork"))).name.startswith("4-")
    # The fork's way has step 4, whatever its parent gave up.
    assert reset(fork, "4", "back to the fork").to_step == 4
    assert position(context, "fork") == (4, 4)
    with pytest.raises(UserError, match="was forked from step 4 of babylon-agent and cannot go"):
        reset(fork, "3", "behind it")
    with pytest.raises(UserError, match="step 4 is on the way to the head of fork"):
        intake.retry_steps(fork, ["4"])


# --- refused ----------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_in_one_line(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(keep_checkpoints=1)
    with pytest.raises(UserError, match="no step of babylon-agent is committed yet"):
        reset(context, "0", "why")
    commit_steps(context, trainer, 4)
    for name, why in (
        ("9", "babylon-agent has no version or step '9': "),
        ("v9.9.9", "babylon-agent has no version or step 'v9.9.9': "),
        ("4", "step 4 is the head of babylon-agent already"),
        ("v1.0.3", "step 4 is the head of babylon-agent already"),
    ):
        with pytest.raises(UserError, match=why):
            reset(context, name, "why")
    with pytest.raises(CheckpointRemoved, match=r"the files of step 1 \(v1\.0\.0\) were removed"):
        reset(context, "1", "why")
    with pytest.raises(UserError, match="say why"):
        reset(context, "3", " \n")
    with pytest.raises(UserError, match="step 3 is on the way to the head of babylon-agent"):
        intake.retry_steps(context, ["3"])
    with pytest.raises(UserError, match="step 0 is on the way to the head of babylon-agent"):
        intake.retry_steps(context, ["0"])
    with pytest.raises(UserError, match="has no version or step '9'"):
        intake.retry_steps(context, ["9"])
    query(context, "UPDATE rl.steps SET trainer = 'serverless' WHERE step = 4 RETURNING 1")
    with pytest.raises(UserError, match="step 4 of babylon-agent is at W&B, whose model goes on"):
        reset(context, "3", "why")
    assert query(context, "SELECT FROM rl.resets") == query(context, "SELECT FROM rl.leases") == []
    assert position(context) == (4, 4)


def test_of_several_steps_all_are_retried_or_none(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 3)
    reset(context, "2", "back")
    with pytest.raises(UserError, match="step 2 is on the way"):
        intake.retry_steps(context, ["3", "2"])
    assert set(states(context).values()) == {"trained"}


def test_while_a_step_trains_and_after_a_pause(
    context: Context, trainer: Trainer, make_context: Callable[..., Context]
) -> None:
    commit_steps(context, trainer, 2)
    scored_windows(context, 20, 21)
    person = make_context()
    told: list[str] = []

    class Slow:
        def step(self, request: StepRequest, on_beat: Any) -> Any:
            with pytest.raises(UserError) as raised:
                reset(person, "1", "back")
            told.append(str(raised.value))
            return trainer.step(request, on_beat)

        def close(self) -> None: ...

    assert pipeline.train(context, Slow())
    assert told == [
        "test:1 trains a step of babylon-agent now: wait until it has ended, or "
        "`babylon lineages pause babylon-agent` and try again"
    ]
    lineage_changes.change_state(fleet_of(person), OWN, LineageState.PAUSED)
    assert reset(person, "1", "back").from_step == 3


def test_a_retired_lineage_is_not_moved(context: Context, trainer: Trainer) -> None:
    fleet = fleet_of(context)
    lineage_changes.create(fleet, "brief", None, None, [])
    brief = fleet.context("brief")
    scored_windows(brief, 2)
    train(brief, trainer)
    lineage_changes.change_state(fleet, "brief", LineageState.RETIRED)
    with pytest.raises(UserError, match="brief is retired, which is final"):
        reset(fleet.context("brief"), "0", "why")


# --- bad moments ------------------------------------------------------------------------------


def everything(context: Context) -> dict[str, list[dict[str, Any]]]:
    """All rows that a reset may change."""
    return {
        table: query(context, f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("rl.heads", "rl.steps", "rl.windows", "rl.resets", "trained_models",
                      "training_batches")
    }  # fmt: skip


class Cut(Exception):
    """The process ends here."""


@pytest.fixture
def branches(context: Context, trainer: Trainer) -> Context:
    """Head 4 after 1; 2 and 3 given up, and the window of 2 waits for a request."""
    commit_steps(context, trainer, 3)
    reset(context, "1", "back")
    intake.retry_steps(context, ["3"])
    assert train(context, trainer) == 4
    intake.retry_steps(context, ["2"])
    add_request(context, "batch", hours_ago(3), "v5.0.0")
    pipeline.produce(context)
    return context


STATEMENTS = (
    "heads.lock",
    "lineages.read",
    "heads.move",
    "transitions.restore_trained",
    "training_batches.complete_trained",
)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_end_between_two_statements_leaves_nothing_half(
    branches: Context, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import babylon_tasks.store

    before = everything(branches)
    module, name = statement.split(".")
    real = getattr(getattr(babylon_tasks.store, module), name)

    def cut(*arguments: Any) -> Any:
        real(*arguments)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(f"babylon_tasks.store.{statement}", cut)
        with pytest.raises(Cut):
            reset(branches, "3", "forward")
    assert everything(branches) == before
    reset(branches, "3", "forward")
    assert position(branches) == (3, 3)
    assert windows_of_steps(branches) == {hours_ago(n + 1): n for n in (1, 2, 3)}
    batch = one(branches, "SELECT status FROM training_batches WHERE \"batchId\" = 'batch'")
    assert batch["status"] == "completed"


def test_a_connection_lost_in_commit(branches: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before it, once after it: the reset is made once, and says what it did."""
    real = transitions.restore_trained
    calls = 0

    def lose(tx: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        moved = real(tx, *arguments)
        if calls == 1:
            raise ServerUnavailable("lost before it")
        return moved

    database = type(branches.database)
    transaction = database.transaction
    lost: list[bool] = []

    def commit_and_lose(self: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def run() -> Any:
            with transaction(self) as tx:
                yield tx
            if calls == 2 and not lost:
                lost.append(True)
                raise ServerUnavailable("lost after it")

        return run()

    monkeypatch.setattr("babylon_tasks.store.transitions.restore_trained", lose)
    monkeypatch.setattr("babylon_tasks.work.leases._AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(database, "transaction", commit_and_lose)
    report = reset(branches, "3", "forward")
    assert lost
    assert (report.from_step, report.to_step, set(report.moved.given_up)) == (4, 3, {4})
    assert len(query(branches, "SELECT FROM rl.resets WHERE to_step = 3")) == 1
    assert position(branches) == (3, 3)


def test_who_lost_the_lease_moves_nothing(
    branches: Context, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended until another worker has trained a step."""
    before, person = position(branches), make_context()
    real = heads.lock

    def late(*arguments: Any) -> Any:
        query(branches, "UPDATE rl.leases SET token = token + 1, holder = 'gpu' RETURNING 1")
        return real(*arguments)

    monkeypatch.setattr("babylon_tasks.store.heads.lock", late)
    with pytest.raises(LeaseLost, match="the lease on babylon-agent ran out or went to another"):
        reset(person, "3", "forward")
    assert position(branches) == before
    assert one(branches, "SELECT holder FROM rl.leases")["holder"] == "gpu"


def test_a_window_that_is_scored_while_a_reset_takes_it_back(
    branches: Context, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scorer writes nothing; the other windows of its claim are scored later."""
    person = make_context()
    add_window(branches, hours_ago(40))
    pipeline.enqueue(branches, hours_ago(40))
    real = transitions.mark_scored

    def meanwhile(tx: Any, claim: Any, window: Any, scored: Any) -> bool:
        if window.window_id == hours_ago(3) and position(person)[0] != 3:
            reset(person, "3", "forward")
        return real(tx, claim, window, scored)

    monkeypatch.setattr("babylon_tasks.store.transitions.mark_scored", meanwhile)
    with pytest.raises(StaleClaim, match="was scored by somebody else"):
        pipeline.score(branches, [hours_ago(3)])
    assert windows_of_steps(branches)[hours_ago(3)] == 2
    assert pipeline.score(branches) == [hours_ago(40)]
    assert states(branches)[hours_ago(40)] == "scored"
    assert query(branches, "SELECT FROM rl.attempts WHERE ended_at IS NULL") == []


def test_a_retry_at_the_moment_of_a_reset(
    branches: Context, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of a step that is taken back at that moment is not trained twice."""
    person = make_context()
    outcomes: list[Any] = []

    def retry() -> None:
        try:
            outcomes.append(intake.retry_steps(person, ["3"]))
        except UserError as error:
            outcomes.append(str(error))

    reset(branches, "2", "first")
    thread = threading.Thread(target=retry)
    real = transitions.restore_trained

    def meanwhile(*arguments: Any) -> Any:
        thread.start()
        wait_until_blocked(branches.settings.postgres())
        return real(*arguments)

    monkeypatch.setattr("babylon_tasks.store.transitions.restore_trained", meanwhile)
    reset(branches, "3", "second")
    thread.join()
    assert outcomes == [
        "step 3 is on the way to the head of babylon-agent, and has trained its windows: "
        "`babylon models reset` gives steps up"
    ]
    assert windows_of_steps(branches) == {hours_ago(n + 1): n for n in (1, 2, 3)}


@pytest.mark.parametrize("moment", ["commit", "reset"])
def test_a_publish_at_the_moment_of_a_commit_or_a_reset(
    branches: Context, make_context: Callable[..., Context], trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch, moment: str,
) -> None:  # fmt: skip
    """Every version of a step on the way is `ready`, and that of the head is `deployed`."""
    reset(branches, "1", "all back")
    query(branches, "UPDATE rl.heads SET published_step = 0 RETURNING 1")
    query(
        branches,
        "UPDATE trained_models SET status = 'training' WHERE version = 'v1.0.0' RETURNING 1",
    )
    scored_windows(branches, 40)
    worker = make_context()
    thread = threading.Thread(target=lambda: pipeline.publish(worker))
    call, real = {
        "commit": ("heads.advance", heads.advance),
        "reset": ("transitions.restore_trained", transitions.restore_trained),
    }[moment]

    def meanwhile(*arguments: Any) -> Any:
        done = real(*arguments)  # type: ignore[operator]
        thread.start()
        wait_until_blocked(branches.settings.postgres())
        return done

    with monkeypatch.context() as patch:
        patch.setattr(f"babylon_tasks.store.{call}", meanwhile)
        if moment == "commit":
            assert pipeline.train(branches, trainer)
        else:
            reset(branches, "3", "forward")
    thread.join()
    head, serves = position(branches)
    assert head == serves
    on_the_way = query(
        branches, "SELECT m.status FROM rl.steps s JOIN trained_models m USING (version)"
        " WHERE s.given_up_at IS NULL ORDER BY s.step"
    )  # fmt: skip
    assert {row["status"] for row in on_the_way[:-1]} == {"ready"}
    assert on_the_way[-1]["status"] == "deployed"


# --- the real trainer -------------------------------------------------------------------------


def test_the_torch_trainer_goes_on_from_the_new_head(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    """The weights of a step after a reset are those of a lineage that never went astray."""
    pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from workers.trainer.torch.trainer import TorchTrainer

    torch_trainer: Any = TorchTrainer("cpu")
    from tests.unit.tiny import make_tiny_model

    base_model = make_tiny_model(tmp_path / "base-model")
    context = make_context(
        trainer="torch", base_model=base_model, learning_rate=0.01, warmup_steps=0
    )
    commit_steps(context, torch_trainer, 3)
    lineage_changes.fork(fleet_of(context), f"{OWN}@2", "straight", [])
    straight = fleet_of(context).context("straight")
    reset(context, "1", "back")
    intake.retry_steps(context, ["2"])
    assert train(context, torch_trainer) == 4
    pipeline.enqueue(straight, hours_ago(4))
    assert train(straight, torch_trainer) == 3

    first, again = trainer_state(context, 2), trainer_state(context, 4)
    assert again["optimizer_steps"] == first["optimizer_steps"]
    assert again["parent"] == first["parent"]
    third, forked = trainer_state(context, 3), trainer_state(context, 3, "straight")
    assert forked["optimizer_steps"] == third["optimizer_steps"] > first["optimizer_steps"]
    # The same parent, windows, seed and recipe: the same weights.
    weights, same = (
        safetensors.load_file(each["folder"] / "adapter_model.safetensors")
        for each in (third, forked)
    )
    assert all((same[name] == weights[name]).all() for name in weights)
