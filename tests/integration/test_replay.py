"""Recipes of real steps, and the steps made again from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

from babylon_tasks import pipeline
from babylon_tasks.errors import CheckpointRemoved, UserError
from babylon_tasks.records.movement import LEAST_POLICY_CHANGE
from babylon_tasks.records.steps import Call, Logprobs, Trainer
from babylon_tasks.scoring.rubric import load_rubric
from babylon_tasks.store import logprobs
from babylon_tasks.store.logprobs import Asked
from babylon_tasks.training.replay import Replayed, order_replay, replay
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.judge_server import JudgeServer
from tests.rows import add_trajectory, add_window, hours_ago, one, query, scored_windows
from tests.unit.tiny import make_tiny_model
from workers.trainer.torch.difference import WeightDifference, compare_adapters
from workers.trainer.torch.trainer import TorchTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # litellm's own
    pytest.mark.filterwarnings("ignore:cov"),  # ART correlates what was recorded: nothing
]

LARGEST_RECIPE = 10_000  # bytes


class Again(Trainer):
    """The real trainer in this process; a step is made in a second."""

    def __init__(self) -> None:
        self._trainer = TorchTrainer("cpu")

    def step(self, request: Any, on_beat: Any) -> Any:
        return self._trainer.step(request, on_beat)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def torch_trainer() -> Trainer:
    return Again()


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_torch(make_context: Callable[..., Context], base_model: str) -> Callable[..., Context]:
    """Workers that train with torch, fast enough for a step to be seen."""

    def make(**changes: Any) -> Context:
        settings = {"trainer": "torch", "base_model": base_model, "learning_rate": 1e-3}
        return make_context(**{**settings, **changes})

    return make


def fleet_of(context: Context) -> Fleet:
    return Fleet(context.database, context.settings, context.holder)


def make_steps(context: Context, trainer: Trainer, count: int) -> None:
    """That many steps, each over a window of its own; the first over that of 2 hours ago."""
    for hours in range(2, 2 + count):
        scored_windows(context, hours)
        assert pipeline.train(context, trainer)


def make_again(
    context: Context, trainer: Trainer, folder: Path, step: str, lineage: str | None = None
) -> tuple[Replayed, WeightDifference]:
    folder = folder / f"again-{step}"
    folder.mkdir()
    done = replay(order_replay(fleet_of(context), lineage, step), trainer, folder)
    return done, compare_adapters(done.files_then, done.files_now)


def refused(context: Context, step: str, lineage: str | None = None) -> str:
    with pytest.raises(UserError) as refusal:
        order_replay(fleet_of(context), lineage, step)
    return str(refusal.value)


def changed_samples(context: Context, folder: Path, step: str) -> str:
    """Why the step is not made again, though nothing but its samples stands against it."""
    order = order_replay(fleet_of(context), None, step)
    with pytest.raises(UserError, match="its samples are not those of then: ") as refusal:
        replay(order, NoTrainer(), folder)
    return str(refusal.value).partition(" of then: ")[2]


class NoTrainer(Trainer):
    """Must not be asked."""

    def step(self, request: Any, on_beat: Any) -> Any:
        raise AssertionError("trained on other samples")

    def close(self) -> None:
        pass


def everything(context: Context) -> dict[str, list[dict[str, Any]]]:
    """All rows of ours and of the app."""
    tables = query(
        context,
        """SELECT schemaname || '."' || tablename || '"' AS name FROM pg_tables
            WHERE schemaname IN ('rl', 'public')""",
    )
    names = [table["name"] for table in tables]
    return {name: query(context, f"SELECT * FROM {name} x ORDER BY x::text") for name in names}


def test_the_recipe_of_a_step(make_torch: Callable[..., Context], torch_trainer: Trainer) -> None:
    context = make_torch(kl_penalty=0.25, max_staleness=7, agents="agent-%")
    windows = scored_windows(context, 2, 3)
    assert pipeline.train(context, torch_trainer)
    query(context, "UPDATE rl.windows SET score_rev = 5 RETURNING 1")
    row = one(context, "SELECT recipe, metrics, length(recipe::text) AS size FROM rl.steps")
    assert row["metrics"]["policy_change"] > LEAST_POLICY_CHANGE
    recipe = row["recipe"]
    assert row["size"] < LARGEST_RECIPE
    sent = [(w["window_id"], w["score_rev"], w["scorer"], w["calls"]) for w in recipe["windows"]]
    assert sent == [(window, 1, "heuristic", 9) for window in windows]
    assert (recipe["lineage"], recipe["parent"], recipe["seed"]) == ("babylon-agent", None, 1)
    assert (recipe["base_model"], recipe["trainer"]) == (context.settings.base_model, "torch")
    samples = recipe["samples"]
    assert (samples["trajectories"], samples["calls"], samples["attached"]) == (6, 18, 0)
    assert len(samples["sha256"]) == 64
    settings = recipe["settings"]
    assert (settings["KL_PENALTY"], settings["LEARNING_RATE"]) == (0.25, 1e-3)
    assert (settings["MAX_STALENESS"], settings["AGENTS"]) == (7, "agent-%")
    assert recipe["device"] == "cpu"
    assert recipe["packages"]["torch"] == version("torch")
    assert {"babylon-tasks", "openpipe-art", "transformers", "peft"} < recipe["packages"].keys()
    pinned = one(context, "SELECT base_revision FROM rl.lineages")["base_revision"]
    assert recipe["base_revision"] == pinned
    assert pinned.startswith("files:")


def test_the_recipe_names_judge_and_rubric(
    make_judged: Callable[..., Context],
    server: JudgeServer,
    trainer: Trainer,
    tmp_path: Path,
) -> None:
    (tmp_path / "rubric.txt").write_text("Who trades most is best.")
    context = make_judged(judge_rubric=str(tmp_path / "rubric.txt"))
    scored_windows(context, 2)
    assert pipeline.train(context, trainer)
    recipe = one(context, "SELECT recipe FROM rl.steps")["recipe"]
    rubric = load_rubric(str(tmp_path / "rubric.txt")).hash
    (window,) = recipe["windows"]
    assert (window["scorer"], window["judge_model"]) == ("ruler", "openai/judge")
    assert window["rubric_hash"] == rubric
    assert one(context, "SELECT DISTINCT rubric_hash FROM rl.judgments")["rubric_hash"] == rubric


def test_a_replay_gives_the_same_weights_and_writes_nothing(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    """Whatever the settings are by now, and with other windows and versions since."""
    context = make_torch(max_staleness=0)
    make_steps(context, torch_trainer, 2)
    window = hours_ago(4)
    add_window(context, window)
    # 1 and 0 steps behind the head, and two that are not known, the second one only later.
    versions = ("v1.0.0", "v1.0.1", "another", "v1.0.2")
    calls = [
        {"systemPrompt": "You trade.", "userPrompt": f"After {v}?", "response": "WAIT",
         "modelVersion": v}
        for v in versions
    ]  # fmt: skip
    text = json.dumps([{"environmentState": {"agentPnL": 900}, "llmCalls": calls}])
    add_trajectory(context, window, "agent-7", stepsJson=text)
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, torch_trainer)
    recipe = one(context, "SELECT recipe FROM rl.steps WHERE step = 3")["recipe"]
    assert recipe["samples"]["calls"] == 9 + 3
    now = make_torch(learning_rate=1e-5, min_reward_spread=1.0, lora_rank=4, scoring="correctness")
    before = everything(context)
    files = sorted((tmp_path / "checkpoints").rglob("*"))
    losses = [row["loss"] for row in query(
        context, "SELECT metrics -> 'loss' AS loss FROM rl.steps ORDER BY step"
    )]  # fmt: skip
    for step in ("1", "2", "babylon-agent-v1.0.2"):
        done, difference = make_again(now, torch_trainer, tmp_path, step)
        assert (difference.differing, difference.largest, difference.where) == (0, 0.0, None)
        assert difference.tensors > 10
        assert done.result.loss == losses.pop(0)
        assert done.surroundings == {}
    assert everything(context) == before
    assert sorted((tmp_path / "checkpoints").rglob("*")) == files


def test_a_step_of_an_earlier_release_is_made_again_as_it_was(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    """Its recipe says nothing of passes and ratios; the settings of today do."""
    later = ["PASSES", "WINDOWS_PER_UPDATE", "RATIO_CAP", "UNRECORDED_RATIO", "KL_REFERENCE",
             "GROUP_DEVIATION"]  # fmt: skip
    then = make_torch(
        passes=1, windows_per_update=0, ratio_cap=5.0, unrecorded_ratio="one", max_staleness=0
    )
    make_steps(then, torch_trainer, 1)
    query(
        then,
        """UPDATE rl.steps SET recipe = jsonb_set(recipe, '{settings}',
               (recipe -> 'settings') - %s::text[]) RETURNING 1""",
        later,
    )
    settings = one(then, "SELECT recipe -> 'settings' AS found FROM rl.steps")["found"]
    assert not set(later) & settings.keys()
    _, difference = make_again(make_torch(), torch_trainer, tmp_path, "1")
    assert (difference.differing, difference.largest) == (0, 0.0)


def test_another_step_is_told_from_it(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    """The comparison sees what one other number in the recipe does."""
    context = make_torch(passes=1, max_policy_change=1000)
    make_steps(context, torch_trainer, 1)
    query(
        context,
        """UPDATE rl.steps SET recipe = jsonb_set(jsonb_set(recipe, '{settings,LEARNING_RATE}',
               '0.002'), '{packages,peft}', '"0.1"') RETURNING 1""",
    )
    done, difference = make_again(context, torch_trainer, tmp_path, "1")
    # AdamW's first step goes the full rate in every direction: a fifth of 0.001, or of 0.002. The
    # other half of the tensors (A) has no gradient yet, since B is 0.
    assert difference.differing == difference.tensors // 2
    assert difference.largest == pytest.approx(0.0002, rel=1e-3)
    assert difference.largest_share == pytest.approx(0.5, rel=1e-3)
    assert "lora_B" in str(difference.where)
    assert list(done.surroundings) == ["peft"]
    assert done.surroundings["peft"][0] == "0.1"


def test_another_base_model_at_the_same_place_is_refused(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    context = make_torch(base_model=make_tiny_model(folder))
    make_steps(context, torch_trainer, 1)
    make_tiny_model(folder, seed=7)
    with pytest.raises(UserError, match="but the lineage is pinned to files:"):
        make_again(context, Again(), tmp_path, "1")


def test_the_first_step_of_a_fork_and_a_step_that_was_given_up(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    context = make_torch()
    make_steps(context, torch_trainer, 2)
    fork = lineage_changes.fork(
        fleet_of(context), "babylon-agent@1", "bold", ["LEARNING_RATE=0.005"]
    )
    forked = fleet_of(context).context(fork.lineage.name)
    add_window(context, hours_ago(9))
    pipeline.produce(forked)
    pipeline.score(forked)
    assert pipeline.train(forked, torch_trainer)
    query(context, "UPDATE rl.steps SET given_up_at = now() WHERE step = 2 RETURNING 1")
    recipe = one(context, "SELECT recipe FROM rl.steps WHERE model_name = 'bold'")["recipe"]
    assert recipe["parent"] == {"lineage": "babylon-agent", "step": 1}
    assert (recipe["overrides"], recipe["seed"]) == (["LEARNING_RATE"], 2)
    for step, lineage in (("2", "bold"), ("1", "bold"), ("v1.0.1", None)):
        _, difference = make_again(context, torch_trainer, tmp_path, step, lineage)
        assert difference.differing == 0


def test_it_says_what_of_the_samples_has_changed(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    context = make_torch()
    windows = scored_windows(context, 2, 3, 4, 5, 6)
    assert pipeline.train(context, torch_trainer)
    again, gone, rewritten, scored, other = windows
    query(
        context, "UPDATE rl.scores SET score = 0.123 WHERE window_id = %s AND score < 0.5"
        " RETURNING 1", other,
    )  # fmt: skip
    assert changed_samples(context, tmp_path, "1") == (
        f"window {other} has other scores or log-probabilities"
    )
    query(
        context,
        """DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = 'agent-1' RETURNING 1""",
        gone,
    )
    query(
        context,
        """UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'BUY', 'SELL')
            WHERE "windowId" = %s AND "agentId" = 'agent-1' RETURNING 1""",
        rewritten,
    )
    why = changed_samples(context, tmp_path, "1")
    assert why == (
        f"window {gone} has 6 calls to train on, and had 9; "
        f"window {rewritten} has a trace that was rewritten after it was scored; "
        f"window {other} has other scores or log-probabilities"
    )
    query(
        context,
        """UPDATE rl.scores SET score = score / 2 WHERE window_id = ANY (%s) RETURNING 1""",
        [again, scored],
    )
    query(
        context,
        "UPDATE rl.windows SET score_rev = 2 WHERE window_id = ANY (%s) RETURNING 1",
        [again, scored],
    )
    assert changed_samples(context, tmp_path, "1") == (
        f"window {again} was scored again; "
        f"window {gone} has 6 calls to train on, and had 9; "
        f"window {rewritten} has a trace that was rewritten after it was scored; "
        "and 2 windows more"
    )
    query(context, 'DELETE FROM trajectories WHERE "windowId" = %s RETURNING 1', gone)
    query(context, "DELETE FROM rl.windows WHERE window_id = %s RETURNING 1", again)
    assert changed_samples(context, tmp_path, "1").startswith(
        f"window {again} has no row any more; "
        f"window {gone} 0 trainable trajectories, a comparison needs 2"
    )


def test_a_window_scored_again_with_the_same_result_is_the_same(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    context = make_torch()
    make_steps(context, torch_trainer, 1)
    query(context, "UPDATE rl.windows SET state = 'due', score_rev = 3, scorer = NULL RETURNING 1")
    query(context, "UPDATE rl.windows SET scoring = 'correctness' RETURNING 1")
    pipeline.score(context)
    assert make_again(context, torch_trainer, tmp_path, "1")[1].differing == 0


def test_log_probabilities_of_a_server_are_not_kept(
    make_torch: Callable[..., Context], torch_trainer: Trainer, tmp_path: Path
) -> None:
    context = make_torch()
    (window,) = scored_windows(context, 2)
    trajectory_id = one(
        context, """SELECT "trajectoryId" AS id FROM trajectories WHERE "agentId" = 'agent-1'"""
    )["id"]
    call = Call("You trade.", "Step 1: buy or wait?", "BUY YES")
    asked = Asked(trajectory_id, logprobs.hash_of(call), "base")
    with context.database.transaction() as tx:
        logprobs.add(tx, "babylon-agent", window, [(asked, Logprobs((1, 2), (-0.5, -0.5)))])
    assert pipeline.train(context, torch_trainer)
    assert one(context, "SELECT recipe FROM rl.steps")["recipe"]["samples"]["attached"] == 1
    assert changed_samples(context, tmp_path, "1") == (
        f"window {window} has other scores or log-probabilities; 1 calls had log-probabilities "
        "from a server, which are not kept after a commit"
    )


def test_what_cannot_be_made_again_is_refused(
    make_torch: Callable[..., Context], torch_trainer: Trainer, trainer: Trainer, tmp_path: Path
) -> None:
    context = make_torch()
    make_steps(context, torch_trainer, 2)
    assert "has no version or step '3'" in refused(context, "3")
    assert "no lineage is called other" in refused(context, "1", "other")
    assert "step 0 is the base model" in refused(context, "0")
    query(context, "UPDATE rl.steps SET removed_at = now() WHERE step = 1 RETURNING 1")
    assert refused(context, "1").startswith("the files of step 1 (v1.0.0) were removed on ")
    assert refused(context, "2").startswith(
        "step 2 (v1.0.1) of babylon-agent cannot be made again: the files of step 1 (v1.0.0) were "
    )
    with pytest.raises(CheckpointRemoved):
        order_replay(fleet_of(context), None, "2")
    query(context, "UPDATE rl.steps SET removed_at = NULL RETURNING 1")

    def changed(path: str, value: str) -> str:
        query(
            context,
            "UPDATE rl.steps SET recipe = jsonb_set(recipe, %s, %s) WHERE step = 2 RETURNING 1",
            path,
            value,
        )
        return refused(context, "2")

    assert changed("{trainer}", '"serverless"').endswith(
        "it was trained by W&B, which has no way to make a step again"
    )
    assert changed("{trainer}", '"noop"').endswith(
        "it was made with TRAINER=noop, which makes no weights"
    )
    assert "upgrade this one" in changed("{windows}", '{"by": "another release"}')
    query(context, "UPDATE rl.steps SET recipe = '{}' WHERE step = 2 RETURNING 1")
    assert refused(context, "2") == (
        "step 2 (v1.0.1) of babylon-agent has no recipe: a worker of release 0.1.0 made it"
    )
    query(
        context,
        """UPDATE rl.steps SET recipe = recipe #- '{settings,LORA_RANK}' WHERE step = 1
           RETURNING 1""",
    )
    with pytest.raises(UserError, match="cannot be made again by this release: in its recipe"):
        replay(order_replay(fleet_of(context), None, "1"), NoTrainer(), tmp_path)
