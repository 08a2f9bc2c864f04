"""What a person does to lineages: create, fork, override, pause, resume, retire."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.cockpit.lineages import list_lineages, read_lineage_story
from babylon_tasks.errors import CheckpointRemoved, UserError
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import heads, lineages
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import wait_until_blocked
from tests.rows import add_window, commit_steps, hours_ago, one, query, scored_windows, states

OWN = "babylon-agent"


def fleet_of(context: Context) -> Fleet:
    return Fleet(context.database, context.settings, context.holder)


def states_of(context: Context, name: str) -> dict[str, str]:
    rows = query(context, "SELECT * FROM rl.windows WHERE model_name = %s", name)
    return {row["window_id"]: row["state"] for row in rows}


def train_a_window(context: Context, trainer: Trainer, hours: int) -> None:
    """One more step of a lineage, over a window of that many hours ago."""
    window = hours_ago(hours)
    if not query(context, 'SELECT FROM trajectories WHERE "windowId" = %s', window):
        add_window(context, window)
    pipeline.enqueue(context, window)
    pipeline.score(context, [window])
    report = pipeline.train(context, trainer, only=[window])
    assert report
    assert report.window_ids == [window]


# --- create -----------------------------------------------------------------------------------


def test_a_new_lineage_is_served_with_its_overrides(context: Context, trainer: Trainer) -> None:
    fleet = fleet_of(context)
    lineage_changes.create(fleet, "judged", None, None, ["min_agents_per_window=3", "DROPOUT="])
    made = fleet.context("judged")
    assert made.lineage.config == {"MIN_AGENTS_PER_WINDOW": "3"}
    assert (made.settings.min_agents_per_window, made.lineage.base_model) == (3, "none")
    assert (made.lineage.primary, made.lineage.created_by) == (False, "test:1")
    add_window(context, hours_ago(2), agents=2)
    add_window(context, hours_ago(3), agents=3)
    pipeline.produce(*fleet.active())
    assert states_of(context, "judged") == {hours_ago(3): "due"}
    assert states_of(context, OWN) == dict.fromkeys((hours_ago(2), hours_ago(3)), "due")
    pipeline.score(made)
    assert pipeline.train(made, trainer)
    assert query(context, "SELECT FROM trained_models") == []


def test_a_base_model_has_its_own_revision_and_no_other(make_context: Any) -> None:
    commit = "a" * 40
    fleet = fleet_of(make_context(base_model_revision=commit))
    assert lineage_changes.create(fleet, "same", None, None, []).base_revision == commit
    other = lineage_changes.create(fleet, "other", "org/model", None, [])
    assert (other.base_model, other.base_revision) == ("org/model", None)
    pinned = lineage_changes.create(fleet, "pinned", "org/model", "b" * 40, [])
    assert fleet.context("pinned").lineage.base_revision == pinned.base_revision == "b" * 40


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("bad name", None, None, []), "a lineage.s name has 1 to 64 letters"),
        (("x\n", None, None, []), "a lineage.s name has 1 to 64 letters"),
        (("", None, None, []), "a lineage.s name has 1 to 64 letters"),
        ((OWN, None, None, []), "babylon-agent is the lineage of MODEL_NAME, which exists"),
        (("a", "", None, []), "BASE_MODEL: String should have at least 1 character"),
        (("a", None, "main", []), "BASE_MODEL_REVISION: String should match pattern"),
        (("a", None, None, ["DROPOUT=7"]), "DROPOUT: Input should be less than or equal"),
        (("a", None, None, ["REDIS_URL=x"]), "REDIS_URL is a setting of the whole deployment"),
        (("a", None, None, ["SCORING"]), "an override is KEY=VALUE"),
        (("a", None, None, ["AGENTS=\udcff"]), "AGENTS: the value is not UTF-8 text"),
        (("a", "\udcff", None, []), "BASE_MODEL: "),
    ],
)
def test_what_cannot_be_created_is_refused_in_one_line(
    context: Context, arguments: tuple[Any, ...], why: str
) -> None:
    with pytest.raises(UserError, match=why) as raised:
        lineage_changes.create(fleet_of(context), *arguments)
    assert str(raised.value).isprintable()
    assert query(context, "SELECT FROM rl.lineages") == []


def test_a_name_is_taken_by_a_lineage_a_head_or_windows(context: Context) -> None:
    """Workers of release 0.1.0 make heads and windows without a row of rl.lineages."""
    fleet = fleet_of(context)
    lineage_changes.create(fleet, "first", None, None, [])
    query(context, "INSERT INTO rl.heads (model_name, base_model) VALUES ('head', 'm') RETURNING 1")
    query(
        context,
        "INSERT INTO rl.windows (window_id, model_name, state) VALUES ('w', 'windows', 'due')"
        " RETURNING 1",
    )
    for name in ("first", "head", "windows"):
        with pytest.raises(UserError, match=f"the name {name} is taken: choose another one"):
            lineage_changes.create(fleet, name, None, None, [])
    assert [row.name for row in list_lineages(fleet)] == [OWN, "first"]


def test_two_who_take_one_name_at_the_same_moment(make_context: Callable[..., Context]) -> None:
    first, second = fleet_of(make_context()), fleet_of(make_context())
    refused: list[str] = []

    def take() -> None:
        try:
            lineage_changes.fork(second, OWN, "new", ["DROPOUT=0.2"])
        except UserError as error:
            refused.append(str(error))

    list_lineages(first)
    with first.database.transaction() as tx:
        new = lineages.lock(tx, OWN)
        assert new
        tx.execute("INSERT INTO rl.lineages (name, base_model, created_by) VALUES ('new', 'm', '')")
        thread = threading.Thread(target=take)
        thread.start()
        wait_until_blocked(first.settings.postgres())
    thread.join()
    assert refused == ["the name new is taken: choose another one for the new lineage"]


# --- fork -------------------------------------------------------------------------------------


def test_a_fork_has_its_parents_recipe_base_and_windows(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context()
    fleet = fleet_of(context)
    lineage_changes.override(fleet, OWN, ["MIN_AGENTS_PER_WINDOW=3", "MIN_REWARD_SPREAD=0.001"])
    commit_steps(fleet.context(), trainer, 3)
    query(context, "UPDATE rl.lineages SET base_revision = 'pinned' RETURNING 1")
    made = lineage_changes.fork(fleet, f"{OWN}@2", "fork", ["MIN_REWARD_SPREAD=", "KL_PENALTY=0.5"])
    assert (made.version, made.inherited_windows) == ("v1.0.1", 2)
    forked = fleet.context("fork")
    assert forked.lineage.config == {"MIN_AGENTS_PER_WINDOW": "3", "KL_PENALTY": "0.5"}
    assert (forked.lineage.base_model, forked.lineage.base_revision) == ("none", "pinned")
    assert (forked.lineage.forked_from, forked.lineage.forked_step) == (OWN, 2)
    assert states_of(context, "fork") == dict.fromkeys((hours_ago(2), hours_ago(3)), "trained")
    # The window of the parent's third step is due for the fork.
    pipeline.produce(*fleet.active())
    assert states_of(context, "fork")[hours_ago(4)] == "due"
    pipeline.score(forked)
    report = pipeline.train(forked, trainer)
    assert report
    assert (report.step, report.window_ids) == (3, [hours_ago(4)])
    parents = query(context, "SELECT model_name, parent_step FROM rl.steps WHERE step = 3")
    assert sorted(row["parent_step"] for row in parents) == [2, 2]


@pytest.mark.parametrize(
    ("origin", "starts"),
    [
        ("babylon-agent", 2),
        ("babylon-agent@0", 0),
        ("babylon-agent@1", 1),
        ("babylon-agent@v1.0.1", 2),
        ("babylon-agent@babylon-agent-v1.0.0", 1),
    ],
)
def test_the_names_of_a_step(context: Context, trainer: Trainer, origin: str, starts: int) -> None:
    commit_steps(context, trainer, 2)
    made = lineage_changes.fork(fleet_of(context), origin, "fork", [])
    assert (made.lineage.forked_step, made.inherited_windows) == (starts, starts)


def test_a_fork_of_a_lineage_that_never_worked(context: Context) -> None:
    made = lineage_changes.fork(fleet_of(context), OWN, "fork", ["LORA_RANK=4"])
    assert (made.lineage.forked_step, made.version, made.inherited_windows) == (0, None, 0)


@pytest.mark.parametrize(
    ("origin", "name", "pairs", "why"),
    [
        ("nobody", "new", [], "no lineage is called nobody: `babylon lineages list` shows"),
        ("no\x1bbody@1", "new", [], "no lineage is called no\ufffdbody: "),
        ("\udcff", "new", [], "no lineage is called \ufffd: "),
        (OWN, OWN, [], "babylon-agent is the lineage of MODEL_NAME, which exists"),
        (f"{OWN}@9", "new", [], "babylon-agent has no version or step '9': "),
        (f"{OWN}@v9.9.9", "new", [], "has no version or step 'v9.9.9': "),
        (f"{OWN}@", "new", [], "has no version or step '': "),
        (f"{OWN}@{'9' * 30}", "new", [], "has no version or step '999"),
        (f"{OWN}@1", "new", ["LORA_RANK=4"], "LORA_RANK is the shape of the weights of babylon-"),
        (f"{OWN}@1", "new", ["DROPOUT=7"], "DROPOUT: Input should be less than or equal"),
        (f"{OWN}@1", "a b", [], "a lineage.s name has 1 to 64 letters"),
    ],
)
def test_what_cannot_be_forked_is_refused_in_one_line(
    context: Context, trainer: Trainer, origin: str, name: str, pairs: list[str], why: str
) -> None:
    commit_steps(context, trainer, 1)
    with pytest.raises(UserError, match=why) as raised:
        lineage_changes.fork(fleet_of(context), origin, name, pairs)
    assert str(raised.value).isprintable()
    assert query(context, "SELECT FROM rl.lineages WHERE forked_from IS NOT NULL") == []


def test_a_step_of_which_the_files_are_gone_or_at_wandb(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4)
    with pytest.raises(CheckpointRemoved, match=r"the files of step 1 \(v1\.0\.0\) were removed"):
        lineage_changes.fork(fleet_of(context), f"{OWN}@1", "new", [])
    query(context, "UPDATE rl.steps SET trainer = 'serverless' WHERE step = 4 RETURNING 1")
    with pytest.raises(UserError, match=r"step 4 of babylon-agent is at W&B, .*fork babylon-agent"):
        lineage_changes.fork(fleet_of(context), OWN, "new", [])
    assert lineage_changes.fork(fleet_of(context), f"{OWN}@0", "new", []).version is None


def on_disk(context: Context, name: str) -> list[int]:
    """The steps of a lineage whose folders are there, whole."""
    folders = Path(context.settings.checkpoint_store).glob(f"{name}/*")
    return sorted(int(checkpoint_files.open_local(str(f)).name.split("-")[0]) for f in folders)


def test_retention_keeps_what_a_chain_of_forks_starts_from(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(keep_checkpoints=1)
    fleet = fleet_of(context)
    commit_steps(context, trainer, 3)
    lineage_changes.fork(fleet, f"{OWN}@2", "b", [])
    lineage_changes.fork(fleet, "b", "c", [])  # of a step that b inherited
    lineage_changes.fork(fleet, "c@v1.0.1", "d", [])
    lineage_changes.change_state(fleet, "b", LineageState.RETIRED)
    lineage_changes.change_state(fleet, "c", LineageState.RETIRED)
    commit_steps(context, trainer, 4)
    assert on_disk(context, OWN) == [2, 5, 6, 7]
    train_a_window(fleet.context("d"), trainer, 20)
    train_a_window(fleet.context("d"), trainer, 21)
    lineage_changes.fork(fleet, "d@3", "e", [])  # of a step of its own
    for hours in (22, 23, 24):
        train_a_window(fleet.context("d"), trainer, hours)
        pipeline.publish(fleet.context("d"))
    assert on_disk(context, "d") == [3, 5, 6, 7]
    train_a_window(fleet.context("e"), trainer, 22)
    lineage_changes.change_state(fleet, "d", LineageState.RETIRED)
    commit_steps(context, trainer, 1)
    assert 2 not in on_disk(context, OWN)  # nobody who is served starts from it


def test_a_fork_waits_for_the_decision_about_old_files(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context, person = make_context(keep_checkpoints=1), make_context()
    commit_steps(context, trainer, 4)
    refused: list[str] = []

    def fork() -> None:
        try:
            lineage_changes.fork(fleet_of(person), f"{OWN}@2", "new", [])
        except CheckpointRemoved as error:
            refused.append(str(error))

    with context.database.transaction() as tx:
        tx.execute("SELECT FROM rl.heads FOR UPDATE")  # as retention does
        thread = threading.Thread(target=fork)
        thread.start()
        wait_until_blocked(context.settings.postgres())
        tx.execute("UPDATE rl.steps SET removed_at = now() WHERE step = 2")
    thread.join()
    assert len(refused) == 1
    assert query(context, "SELECT FROM rl.lineages WHERE name = 'new'") == []


def test_retention_waits_for_a_fork(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, person = make_context(keep_checkpoints=1), make_context()
    commit_steps(context, trainer, 4)
    scored_windows(context, 20)
    trained: list[Any] = []
    thread = threading.Thread(target=lambda: trained.append(pipeline.train(context, trainer)))
    real = heads.share

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        thread.start()
        wait_until_blocked(context.settings.postgres())

    monkeypatch.setattr("babylon_tasks.store.heads.share", meanwhile)
    lineage_changes.fork(fleet_of(person), f"{OWN}@2", "new", [])
    thread.join()
    assert trained[0]
    assert on_disk(context, OWN) == [2, 3, 4, 5]


# --- set --------------------------------------------------------------------------------------


def test_overrides_are_added_changed_and_taken_back(context: Context) -> None:
    fleet = fleet_of(context)
    lineage_changes.override(fleet, OWN, ["DROPOUT=0.5", "KL_PENALTY=0", "LORA_RANK=4"])
    done = lineage_changes.override(fleet, OWN, ["dropout=0.25", "KL_PENALTY="])
    assert not done.taken_over
    own = fleet.context()
    assert own.lineage.config == {"DROPOUT": "0.25", "LORA_RANK": "4"}
    assert (own.settings.dropout, own.settings.kl_penalty) == (0.25, context.settings.kl_penalty)
    assert own.lineage.own_settings
    row = one(context, "SELECT * FROM rl.lineages")
    assert row["changed_by"] == "test:1"
    assert row["changed_at"]


def test_the_shape_of_the_weights_is_fixed_by_the_first_step(
    context: Context, trainer: Trainer
) -> None:
    fleet = fleet_of(context)
    commit_steps(context, trainer, 1)
    lineage_changes.fork(fleet, OWN, "fork", [])
    lineage_changes.fork(fleet, f"{OWN}@0", "again", ["LORA_RANK=4"])
    lineage_changes.override(fleet, "again", ["LORA_ALPHA=4"])
    for name in (OWN, "fork"):
        for pair in ("LORA_RANK=4", "LORA_ALPHA="):
            with pytest.raises(UserError, match=f"LORA_.* is the shape of the weights of {name}"):
                lineage_changes.override(fleet, name, ["DROPOUT=0.5", pair])
        assert fleet.context(name).lineage.config == {}


def test_the_lineage_of_another_deployment_is_taken_over(
    make_context: Callable[..., Context],
) -> None:
    ours = fleet_of(make_context())
    theirs = fleet_of(make_context(model_name="side", kl_penalty=0.7))
    theirs.active()
    assert {c.lineage.name for c in ours.active()} == {OWN}
    done = lineage_changes.override(ours, "side", ["DROPOUT=0.5"])
    assert done.taken_over
    assert not done.lineage.primary
    (side,) = [c for c in ours.active() if c.lineage.name == "side"]
    assert (side.settings.dropout, side.settings.kl_penalty) == (0.5, ours.settings.kl_penalty)
    assert not lineage_changes.override(ours, "side", ["DROPOUT=0.25"]).taken_over


def test_set_refuses_in_one_line(context: Context) -> None:
    fleet = fleet_of(context)
    with pytest.raises(UserError, match="no lineage is called nobody"):
        lineage_changes.override(fleet, "nobody", ["DROPOUT=0.5"])
    with pytest.raises(UserError, match="DROPOUT: Input should be less than or equal"):
        lineage_changes.override(fleet, OWN, ["DROPOUT=7"])
    lineage_changes.create(fleet, "old", None, None, [])
    lineage_changes.change_state(fleet, "old", LineageState.RETIRED)
    with pytest.raises(UserError, match="old is retired, which is final: `babylon lineages fork"):
        lineage_changes.override(fleet, "old", ["DROPOUT=0.5"])


# --- pause, resume, retire --------------------------------------------------------------------


def test_nothing_of_a_paused_lineage_moves(context: Context, trainer: Trainer) -> None:
    fleet = fleet_of(context)
    scored_windows(context, 2)
    add_window(context, hours_ago(3))
    done = lineage_changes.change_state(fleet, OWN, LineageState.PAUSED)
    assert (done.was, done.trained_by) == (LineageState.ACTIVE, None)
    assert fleet.active() == []
    assert list(fleet.in_turn("train")) == []
    assert pipeline.train(context, trainer) is None  # who had it in hand already
    assert query(context, "SELECT FROM rl.leases") == []
    assert lineage_changes.change_state(fleet, OWN, LineageState.PAUSED).was == "paused"
    lineage_changes.change_state(fleet, OWN, LineageState.ACTIVE)
    pipeline.produce(*fleet.active())
    assert pipeline.train(context, trainer)


def test_a_lineage_retired_in_mid_step(
    context: Context, trainer: Trainer, make_context: Callable[..., Context]
) -> None:
    """The step is committed, no other begins, and what waits stays as it is."""
    fleet = fleet_of(context)
    lineage_changes.create(fleet, "brief", None, None, ["MAX_STEP_TOKENS=1"])
    brief = fleet.context("brief")
    windows = scored_windows(brief, 2, 3)
    changes: list[Any] = []

    class Slow:
        def step(self, request: Any, on_beat: Any) -> Any:
            person = fleet_of(make_context())
            changes.append(lineage_changes.change_state(person, "brief", LineageState.RETIRED))
            return trainer.step(request, on_beat)

        def close(self) -> None: ...

    report = pipeline.train(brief, Slow())
    assert report
    assert report.window_ids == windows[:1]
    assert changes[0].trained_by == "test:1"
    assert pipeline.train(brief, trainer) is None
    assert states(context) == {windows[0]: "trained", windows[1]: "scored"}
    with pytest.raises(UserError, match="brief is retired, which is final"):
        lineage_changes.change_state(fleet, "brief", LineageState.ACTIVE)
    # It goes on as a fork.
    made = lineage_changes.fork(fleet, "brief", "after", [])
    assert (made.lineage.forked_step, made.inherited_windows) == (1, 1)


def test_who_claims_at_the_same_moment_as_a_pause(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the pause names who trains, or nobody trains."""
    worker, person = make_context(), make_context()
    scored_windows(worker, 2)
    lineage_changes.change_state(fleet_of(person), OWN, LineageState.ACTIVE)
    claimed: list[Any] = []
    with person.database.transaction() as tx:
        row = lineages.lock(tx, OWN)
        assert row
        thread = threading.Thread(target=lambda: claimed.append(pipeline.train(worker, trainer)))
        thread.start()
        wait_until_blocked(worker.settings.postgres())
        tx.execute("UPDATE rl.lineages SET state = 'paused'")
    thread.join()
    assert claimed == [None]
    lineage_changes.change_state(fleet_of(person), OWN, LineageState.ACTIVE)

    real = lineages.read
    changes: list[Any] = []
    pausing = threading.Thread(
        target=lambda: changes.append(
            lineage_changes.change_state(fleet_of(person), OWN, LineageState.PAUSED)
        )
    )

    def meanwhile(*arguments: Any) -> Any:
        rows = real(*arguments)
        if not pausing.ident and threading.current_thread() is threading.main_thread():
            pausing.start()
            wait_until_blocked(worker.settings.postgres())
        return rows

    monkeypatch.setattr("babylon_tasks.store.lineages.read", meanwhile)
    assert pipeline.train(worker, trainer)
    pausing.join()
    assert changes[0].trained_by == worker.holder


def test_the_lineage_of_model_name_is_paused_and_not_retired(context: Context) -> None:
    fleet = fleet_of(context)
    with pytest.raises(UserError, match="is the lineage of MODEL_NAME, which cannot be retired"):
        lineage_changes.change_state(fleet, OWN, LineageState.RETIRED)
    with pytest.raises(UserError, match="no lineage is called nobody"):
        lineage_changes.change_state(fleet, "nobody", LineageState.PAUSED)


# --- list and show ----------------------------------------------------------------------------


def test_the_list_and_the_story_of_a_lineage(context: Context, trainer: Trainer) -> None:
    fleet = fleet_of(context)
    assert [row.name for row in list_lineages(fleet)] == [OWN]
    commit_steps(context, trainer, 2)
    commit_steps(context, trainer, 1, publish=False)
    lineage_changes.fork(fleet, f"{OWN}@2", "fork", ["LINEAGE_WEIGHT=3"])
    scored_windows(context, 20)
    add_window(context, hours_ago(21))
    pipeline.produce(context)
    own, fork = list_lineages(fleet)
    assert (own.step, own.published_step, own.due, own.scored, own.trained) == (3, 2, 1, 1, 3)
    assert (own.primary, own.weight, own.forked_from, own.state) == (True, None, None, "active")
    assert (fork.step, fork.published_step, fork.trained, fork.weight) == (2, 2, 2, "3")
    assert (fork.primary, fork.forked_from, fork.forked_step) == (False, OWN, 2)
    story = read_lineage_story(fleet, OWN)
    assert [step.step for step in story.steps] == [3, 2, 1]
    assert [(each.name, each.forked_step) for each in story.forks] == [("fork", 2)]
    assert (story.step, story.published_step, story.trained_by) == (3, 2, None)
    with pytest.raises(UserError, match="no lineage is called nobody"):
        read_lineage_story(fleet, "nobody")
