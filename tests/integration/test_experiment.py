"""The live experiment: what agents earn decides which version serves."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.experiments import Experiment, ExperimentLook
from babylon_tasks.records.gates import Gate
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.shares import share_at
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.serving import promote
from babylon_tasks.store import experiments, gates, serving
from babylon_tasks.store.database import now
from babylon_tasks.training.reset import reset
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import move_clock, wait_until_blocked
from tests.rows import commit_steps, fork, one, query

OWN = "babylon-agent"
MakeContext = Callable[..., Context]
_ids = itertools.count(1)


@pytest.fixture
def gate(make_context: MakeContext, trainer: Trainer) -> Context:
    """Step 1 serves, step 2 passed its exam, and the endpoint answers agents."""
    always = make_context()
    commit_steps(always, trainer, 1)
    commit_steps(always, trainer, 1, publish=False)
    gate = make_context(publish="gate", experiment_windows=6)
    passed(gate, 2)
    answered(gate, window_id_at(time_of(gate)), {"agent-0": 1})
    return gate


def time_of(context: Context) -> datetime:
    with context.database.transaction() as tx:
        return now(tx)


def passed(context: Context, step: int) -> None:
    query(
        context,
        """INSERT INTO rl.exams (model_name, step, served_step, state, token, holder, opened_at,
                                 decided_at)
           VALUES (%s, %s, 1, 'passed', 1, 'test', rl.now(), rl.now()) RETURNING 1""",
        OWN,
        step,
    )


def answered(context: Context, window: str, agents: dict[str, int], **counts: int) -> None:
    """Which step answered each agent in a window."""
    told = {"answers": 10, "failed": 0, "malformed": 0, "pinned": 0, **counts}
    for agent, step in agents.items():
        query(
            context,
            """INSERT INTO rl.assignments (model_name, window_id, agent, step, answers, failed,
                                           malformed, pinned, first_at, last_at)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, rl.now(), rl.now()) RETURNING 1""",
            *(OWN, window, agent, step, *told.values()),
        )


def scored(context: Context, window: str, scores: dict[str, list[float]]) -> None:
    """A window in which each agent has trajectories with these scores; again if it has a row."""
    query(
        context,
        """INSERT INTO rl.windows (window_id, model_name, state, scorer, score_rev)
           VALUES (%s, %s, 'scored', 'heuristic', 1)
           ON CONFLICT (window_id, model_name) DO UPDATE SET score_rev = rl.windows.score_rev + 1
           RETURNING 1""",
        *(window, OWN),
    )
    with context.database.transaction() as tx:
        tx.execute("DELETE FROM rl.scores WHERE window_id = %s", [window])
    for agent, score in ((agent, score) for agent, each in scores.items() for score in each):
        query(
            context,
            """INSERT INTO rl.scores (trajectory_id, model_name, scorer, window_id, agent_id, score,
                                      content_hash)
               VALUES (%s, %s, 'heuristic', %s, %s, %s, '') RETURNING 1""",
            *(f"x-{next(_ids)}", OWN, window, agent, score),
        )


def play(context: Context, number: int, served: float, candidate: float, agents: int = 8) -> str:
    """A scored window, counted from the experiment's first, with so many agents of each version."""
    window = nth(context, number)
    steps = {f"s-{n}": 1 for n in range(agents)} | {f"c-{n}": 2 for n in range(agents)}
    answered(context, window, steps)
    scored(context, window, runs(served, candidate, agents))
    return window


def runs(served: float, candidate: float, agents: int = 8) -> dict[str, list[float]]:
    """Scores around two means."""
    return {
        f"{arm}-{n}": [mean + 0.02 * (n - (agents - 1) / 2)]
        for arm, mean in (("s", served), ("c", candidate))
        for n in range(agents)
    }


def nth(context: Context, number: int) -> str:
    first = datetime.fromisoformat(history(context)[0][0].first_window + "+00:00")
    return window_id_at(first + timedelta(hours=number))


def history(context: Context) -> list[tuple[Experiment, list[ExperimentLook]]]:
    with context.database.transaction() as tx:
        return experiments.listing(tx, OWN)


def decisions(context: Context) -> list[str]:
    return [look.decision for look in history(context)[0][1]]


def state(context: Context) -> str:
    return history(context)[0][0].state.value


def serves(context: Context) -> int:
    return int(one(context, "SELECT published_step FROM rl.heads")["published_step"])


def shared(context: Context, hours: float = 0) -> tuple[int, float, str | None] | None:
    """The share in force in so many hours."""
    with context.database.transaction() as tx:
        (row,) = (row for row in serving.serving_rows(tx) if row.name == OWN)
        share = share_at(row.shares, now(tx) + timedelta(hours=hours))
    return (share.step, share.percent, share.draw) if share else None


def rings(*contexts: Context) -> bool:
    """Whether the sweep rings for the publisher."""
    return any(pipeline.sweep(context, 1).publish == [OWN] for context in contexts)


# --- which steps are tried --------------------------------------------------------------------


def test_a_passed_step_answers_a_part_of_the_agents_from_the_next_window_on(gate: Context) -> None:
    assert rings(gate)
    assert pipeline.publish(gate) == []
    (found, looks) = history(gate)[0]
    assert (found.step, found.served_step, found.state, found.percent) == (2, 1, "running", 20)
    assert found.first_window == window_id_at(time_of(gate) + timedelta(hours=1))
    assert looks == []
    assert shared(gate) is None
    assert shared(gate, 1) == (2, 20, f"experiment-{found.id}")
    assert not rings(gate)
    assert pipeline.publish(gate) == []
    assert len(history(gate)) == 1
    assert one(gate, "SELECT gated FROM rl.heads")["gated"]


def test_without_traffic_the_exam_alone_decides(gate: Context) -> None:
    move_clock(gate, 3 * 3600)
    assert pipeline.publish(gate) == ["v1.0.1"]
    assert (serves(gate), history(gate)) == (2, [])
    why = "step 2 passed its exam, and no agent has asked the endpoint for two windows"
    last = query(gate, "SELECT * FROM rl.promotions ORDER BY id")[-1]
    assert (last["kind"], last["why"]) == ("automatic", why)
    assert not rings(gate)


def test_agents_that_pin_a_version_are_no_traffic(gate: Context) -> None:
    query(gate, "UPDATE rl.assignments SET pinned = answers RETURNING 1")
    assert pipeline.publish(gate) == ["v1.0.1"]


def test_without_experiments_the_exam_alone_decides(
    make_context: MakeContext, gate: Context
) -> None:
    assert pipeline.publish(make_context(publish="gate", experiment_percent=0)) == ["v1.0.1"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rl.exams SET state = 'failed'",
        "UPDATE rl.exams SET state = 'open', decided_at = NULL",
        "DELETE FROM rl.exams",
        "UPDATE rl.steps SET given_up_at = now() WHERE step = 2",
        "UPDATE rl.steps SET removed_at = now() WHERE step = 2",
        "UPDATE rl.heads SET promotion_paused_at = now()",
    ],
)
def test_what_may_not_serve_is_not_tried_and_nobody_is_rung(gate: Context, change: str) -> None:
    query(gate, f"{change} RETURNING 1")
    assert rings(gate)  # to write that the lineage is gated
    assert pipeline.publish(gate) == []
    assert not rings(gate)
    assert (serves(gate), history(gate)) == (1, [])


def test_by_hand_alone_if_so_set(make_context: MakeContext, gate: Context) -> None:
    manual = make_context(publish="manual")
    pipeline.publish(gate)
    assert rings(manual)
    assert pipeline.publish(manual) == []
    assert state(manual) == "stopped"
    assert history(manual)[0][0].reason == "PUBLISH is manual"
    assert not rings(manual)
    assert promote.promote(manual, "2", "a person says so").step == 2


def test_a_lineage_that_is_always_published_again_says_so(
    make_context: MakeContext, gate: Context
) -> None:
    """A worker of release 0.1.0 may publish it then."""
    pipeline.publish(gate)
    always = make_context()
    assert rings(always)
    assert pipeline.publish(always) == ["v1.0.1"]
    assert state(always) == "stopped"
    assert not one(always, "SELECT gated FROM rl.heads")["gated"]
    assert not rings(always)


def test_a_share_by_hand_is_not_replaced(gate: Context) -> None:
    promote.share(gate, "1", 5, "I want to see it")
    pipeline.publish(gate)
    assert history(gate) == []
    assert not rings(gate)
    promote.share(gate, "1", 0, "seen")
    assert rings(gate)
    pipeline.publish(gate)
    assert state(gate) == "running"


# --- what the scores decide -------------------------------------------------------------------


def test_a_better_version_is_promoted(gate: Context) -> None:
    pipeline.publish(gate)
    move_clock(gate, 3600)
    assert shared(gate)
    windows = [play(gate, 0, 0.4, 0.6)]
    assert rings(gate)
    assert pipeline.publish(gate) == []
    assert shared(gate, 1) == (2, 40, f"experiment-{history(gate)[0][0].id}")
    windows.append(play(gate, 1, 0.3, 0.5))
    assert pipeline.publish(gate) == ["v1.0.1"]
    (found, looks) = history(gate)[0]
    assert [look.window_id for look in looks] == windows
    assert decisions(gate) == ["more agents", "promoted"]
    assert (found.state, serves(gate)) == ("promoted", 2)
    assert found.ended_at
    assert found.reason == (
        "step 2 earned 0.200 more a run than step 1 (95 % interval "
        f"{looks[-1].standing.low:+.3f} to {looks[-1].standing.high:+.3f}), 16 runs beside 16, in "
        "2 windows"
    )
    last = query(gate, "SELECT * FROM rl.promotions ORDER BY id")[-1]
    assert (last["kind"], last["why"], last["holder"]) == ("automatic", found.reason, gate.holder)
    assert looks[0].evidence.candidate.mean == pytest.approx(0.6)
    assert looks[0].evidence.candidate.runs == 8
    # 0.02^2 (3.5^2 + 2.5^2 + 1.5^2 + 0.5^2) 2 = 0.0004 * 42
    assert looks[0].evidence.served.squares == pytest.approx(0.0168)
    assert shared(gate) is shared(gate, 1) is None
    assert not rings(gate)


def test_a_worse_version_is_rolled_back_and_what_follows_it_waits(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    pipeline.publish(gate)
    move_clock(gate, 3600)
    play(gate, 0, 0.6, 0.4)
    play(gate, 1, 0.6, 0.4)
    pipeline.publish(gate)
    assert (state(gate), serves(gate), shared(gate)) == ("rolled_back", 1, None)
    assert "step 2 earned 0.200 less a run than step 1 (80 % interval" in history(gate)[0][0].reason
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    assert not rings(gate)
    pipeline.publish(gate)
    assert len(history(gate)) == 1
    reset(gate, "1", "its parent did harm")
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 4)
    answered(gate, window_id_at(time_of(gate)), {"agent-1": 1})
    assert rings(gate)
    pipeline.publish(gate)
    assert history(gate)[0][0].step == 4


def test_after_its_windows_the_old_version_stays(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    pipeline.publish(gate)
    for number in range(7):
        play(gate, number, 0.5, 0.5)
    assert pipeline.publish(gate) == []  # all that were scored, at once
    assert decisions(gate) == ["more agents"] * 2 + ["go on"] * 3 + ["undecided"]
    assert (state(gate), serves(gate), shared(gate, 1)) == ("undecided", 1, None)
    assert not rings(gate)
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    pipeline.publish(gate)
    assert (history(gate)[0][0].step, state(gate)) == (3, "running")


def test_the_step_before_one_that_was_tried_is_not_tried(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    pipeline.publish(gate)
    assert history(gate)[0][0].step == 3
    query(gate, "UPDATE rl.experiments SET ended_at = now(), state = 'undecided' RETURNING 1")
    assert not rings(gate)
    pipeline.publish(gate)
    assert len(history(gate)) == 1


def test_one_that_is_not_told_apart_gives_way_to_a_newer_one(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    pipeline.publish(gate)
    for number in range(2):
        play(gate, number, 0.5, 0.5)
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    pipeline.publish(gate)
    assert (history(gate)[0][0].step, state(gate)) == (2, "running")
    play(gate, 2, 0.5, 0.5)
    move_clock(gate, 3 * 3600)
    pipeline.publish(gate)
    assert (history(gate)[0][0].step, state(gate)) == (3, "running")
    ended = history(gate)[1][0]
    assert ended.state == "undecided"
    assert ended.reason.startswith("it gives way to step 3: step 2 ")
    assert shared(gate, 1) == (3, 20, f"experiment-{history(gate)[0][0].id}")
    assert not rings(gate)


def test_who_takes_part(gate: Context) -> None:
    """An agent that one of the two versions alone answered; its trajectories are one run."""
    pipeline.publish(gate)
    window = nth(gate, 0)
    answered(gate, window, {"two-versions": 1, "served": 1, "pins-another": 1})
    answered(gate, window, {"two-versions": 2, "candidate": 2, "other": 0})
    answered(gate, window, {"pins": 2}, pinned=1)
    answered(gate, window, {"pins-another": 0}, pinned=1)
    everybody = {"two-versions", "pins", "pins-another", "other", "unknown"}
    scored(gate, window, {"served": [0.5], "candidate": [0.2, 0.4]} | {a: [1.0] for a in everybody})
    query(
        gate,
        """INSERT INTO rl.scores (trajectory_id, model_name, scorer, window_id, agent_id, score,
                                  content_hash)
           VALUES ('x', %s, 'ruler', %s, 'served', 1, '') RETURNING 1""",
        *(OWN, window),
    )
    pipeline.publish(gate)
    (look,) = history(gate)[0][1]
    assert (look.evidence.served.runs, look.evidence.candidate.runs) == (1, 1)
    assert look.evidence.served.mean == 0.5  # by the window's own scorer
    assert look.evidence.candidate.mean == pytest.approx(0.3)
    assert (look.standing.difference, look.standing.low) == (pytest.approx(-0.2), None)


def test_a_window_in_which_nobody_was_answered_shows_nothing(gate: Context) -> None:
    """The endpoint is away: the windows count, and nothing is decided by them."""
    pipeline.publish(gate)
    for number in range(6):
        scored(gate, nth(gate, number), runs(0.2, 0.9))
    pipeline.publish(gate)
    assert (state(gate), serves(gate)) == ("undecided", 1)
    assert history(gate)[0][1][-1].standing.difference is None


def test_a_window_that_was_scored_again_is_looked_at_again(gate: Context) -> None:
    pipeline.publish(gate)
    first = play(gate, 0, 0.4, 0.5)
    pipeline.publish(gate)
    play(gate, 1, 0.45, 0.5)
    pipeline.publish(gate)
    before = history(gate)[0][1]
    assert before[1].standing.difference == pytest.approx(0.075)
    scored(gate, first, runs(0.5, 0.5))
    assert rings(gate)
    pipeline.publish(gate)
    looks = history(gate)[0][1]
    assert [look.score_rev for look in looks] == [2, 1]
    assert looks[0].standing.difference == pytest.approx(0.025)
    assert looks[0].standing.windows == 2
    assert not rings(gate)


# --- what agents get --------------------------------------------------------------------------


def test_a_version_that_fails_its_agents_ends_at_once(gate: Context) -> None:
    """In the window of now, that no scorer has seen; also while promotion is paused."""
    pipeline.publish(gate)
    move_clock(gate, 3600)
    window = window_id_at(time_of(gate))
    answered(gate, window, {f"s-{n}": 1 for n in range(16)}, malformed=1)
    answered(gate, window, {f"c-{n}": 2 for n in range(3)}, malformed=4)
    assert rings(gate)
    pipeline.publish(gate)
    assert state(gate) == "running"
    promote.pause(gate, "a look")
    answered(gate, window, {"c-3": 2}, failed=9, answers=0)
    pipeline.publish(gate)
    assert (state(gate), shared(gate)) == ("rolled_back", None)
    assert history(gate)[0][0].reason == (
        "step 2 failed 4 of 4 agents with errors or malformed answers, step 1 0 of 16"
    )
    assert decisions(gate) == ["rolled back"]


def test_one_agent_that_no_version_can_answer_is_no_reason(gate: Context) -> None:
    pipeline.publish(gate)
    move_clock(gate, 3600)
    window = window_id_at(time_of(gate))
    answered(gate, window, {f"s-{n}": 1 for n in range(16)})
    answered(gate, window, {"odd": 2}, malformed=5000, answers=5000)
    answered(gate, window, {f"c-{n}": 2 for n in range(3)})
    pipeline.publish(gate)
    assert state(gate) == "running"


# --- by hand ----------------------------------------------------------------------------------


def stopped(gate: Context, why: str) -> None:
    (found, looks) = history(gate)[0]
    assert (found.state, found.reason) == ("stopped", why)
    assert looks[-1].decision == "stopped"
    assert not rings(gate)


def test_a_promotion_by_hand_ends_it(gate: Context) -> None:
    pipeline.publish(gate)
    promote.promote(gate, "2", "I have seen enough")
    stopped(gate, "step 2 serves since")
    assert shared(gate, 1) is None


def test_a_rollback_by_hand_ends_it(gate: Context) -> None:
    pipeline.publish(gate)
    promote.roll_back(gate, "0", "both are bad")
    stopped(gate, "step 0 serves since")
    assert shared(gate, 1) is None


def test_a_reset_ends_it(gate: Context) -> None:
    pipeline.publish(gate)
    reset(gate, "1", "a broken feed")
    assert rings(gate)
    pipeline.publish(gate)
    stopped(gate, "step 2 was given up")
    assert shared(gate, 1) is None


@pytest.mark.parametrize(("step", "percent"), [("2", 20), ("2", 0), ("1", 10)])
def test_a_share_by_hand_ends_it_and_stays(gate: Context, step: str, percent: float) -> None:
    pipeline.publish(gate)
    move_clock(gate, 3600)
    promote.share(gate, step, percent, "I know better")
    stopped(gate, "its share was changed by hand")
    assert shared(gate) is None
    assert shared(gate, 1) == ((int(step), percent, None) if percent else None)


def test_the_apps_deployment_ends_it(gate: Context) -> None:
    pipeline.publish(gate)
    query(
        gate,
        """UPDATE trained_models SET status = 'deployed', "agentsUsing" = 1
            WHERE "modelId" = %s RETURNING 1""",
        f"{OWN}-v1.0.1",
    )
    assert rings(gate)
    pipeline.publish(gate)
    stopped(gate, "step 2 serves since")


def test_files_that_are_gone_end_it(gate: Context) -> None:
    pipeline.publish(gate)
    query(gate, "UPDATE rl.steps SET removed_at = now() WHERE step = 2 RETURNING 1")
    assert rings(gate)
    pipeline.publish(gate)
    stopped(gate, "the files of step 2 were removed")


def test_a_lineage_that_is_paused_tries_nothing(gate: Context) -> None:
    """Nobody scores its windows, so nobody would see what the new version does."""
    pipeline.publish(gate)
    move_clock(gate, 3600)
    fleet = Fleet(gate.database, gate.settings, "me")
    lineage_changes.change_state(fleet, OWN, LineageState.PAUSED)
    found = history(gate)[0][0]
    assert (found.state, found.reason, shared(gate)) == ("stopped", "the lineage is paused", None)
    lineage_changes.change_state(fleet, OWN, LineageState.ACTIVE)
    assert fleet.to_publish() == []


def test_while_promotion_is_paused_it_waits(gate: Context) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.4, 0.6)
    play(gate, 1, 0.4, 0.6)
    promote.pause(gate, "a holiday")
    assert not rings(gate)
    assert pipeline.publish(gate) == []
    assert (state(gate), decisions(gate)) == ("running", [])
    promote.resume(gate, "back")
    assert rings(gate)
    assert pipeline.publish(gate) == ["v1.0.1"]


# --- bad moments ------------------------------------------------------------------------------


def test_a_death_before_the_commit_decides_nothing(
    gate: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.4, 0.6)
    play(gate, 1, 0.4, 0.6)
    real = experiments.end

    def die(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "end", die)
    with pytest.raises(KeyboardInterrupt):
        pipeline.publish(gate)
    assert (state(gate), decisions(gate), serves(gate)) == ("running", [], 1)
    assert shared(gate, 1) == (2, 20, f"experiment-{history(gate)[0][0].id}")
    monkeypatch.undo()
    assert pipeline.publish(gate) == ["v1.0.1"]
    assert decisions(gate) == ["more agents", "promoted"]


def test_an_app_that_holds_its_row_delays_a_promotion(gate: Context) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.4, 0.6)
    play(gate, 1, 0.4, 0.6)
    with psycopg.connect(gate.settings.postgres()) as held:
        held.execute("SELECT FROM trained_models WHERE version = 'v1.0.1' FOR UPDATE")
        with pytest.raises(ServerUnavailable, match="the app changes a version"):
            pipeline.publish(gate)
    assert (state(gate), decisions(gate), serves(gate)) == ("running", [], 1)
    assert pipeline.publish(gate) == ["v1.0.1"]


def test_a_clock_that_goes_back_ends_nothing(gate: Context) -> None:
    """Then a share that was to start later is newer than the one that is to start now."""
    pipeline.publish(gate)
    move_clock(gate, 3600)
    play(gate, 0, 0.5, 0.5)
    pipeline.publish(gate)
    assert shared(gate, 1) == (2, 40, f"experiment-{history(gate)[0][0].id}")
    move_clock(gate, -3 * 3600)
    play(gate, 1, 0.5, 0.5)
    pipeline.publish(gate)
    assert (state(gate), decisions(gate)) == ("running", ["more agents"] * 2)
    assert not rings(gate)


def test_two_publishers_at_once_begin_one(
    gate: Context, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_context(publish="gate")
    thread = threading.Thread(target=lambda: pipeline.publish(other))
    real = experiments.begin_in

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        thread.start()
        wait_until_blocked(gate.settings.postgres())

    monkeypatch.setattr(experiments, "begin_in", meanwhile)
    pipeline.publish(gate)
    thread.join()
    assert len(history(gate)) == 1


def test_two_publishers_at_once_decide_once(
    gate: Context, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.4, 0.6)
    play(gate, 1, 0.4, 0.6)
    other, published = make_context(publish="gate"), list[list[str]]()
    thread = threading.Thread(target=lambda: published.append(pipeline.publish(other)))
    real = experiments.end

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        thread.start()
        wait_until_blocked(gate.settings.postgres())

    monkeypatch.setattr(experiments, "end", meanwhile)
    assert pipeline.publish(gate) == ["v1.0.1"]
    thread.join()
    assert published == [[]]
    assert decisions(gate) == ["more agents", "promoted"]


def test_a_worker_of_release_0_1_0_promotes_nothing_that_is_gated(gate: Context) -> None:
    pipeline.publish(gate)
    query(gate, "UPDATE rl.heads SET published_step = step RETURNING 1")
    assert serves(gate) == 1


def test_many_lineages_are_asked_about_at_once(gate: Context, make_context: MakeContext) -> None:
    fleet = Fleet(gate.database, gate.settings, "test:9")
    assert [each.lineage.name for each in fleet.to_publish()] == [OWN]
    pipeline.publish(gate)
    assert fleet.to_publish() == []


def test_lineages_are_published_in_any_order(gate: Context, make_context: MakeContext) -> None:
    """One whose publishing fails each time must not keep the others from theirs."""
    fleet = Fleet(gate.database, gate.settings, "me")
    for name in ("child", "other"):
        fork(gate, name, 1)
    firsts = {fleet.to_publish()[0].lineage.name for _ in range(100)}
    assert firsts == {OWN, "child", "other"}


# --- what people see of it --------------------------------------------------------------------


def seen(context: Context) -> Gate:
    with context.database.transaction() as tx:
        return gates.read(tx, [OWN])[OWN]


def test_what_waits_is_the_candidate_and_then_the_experiment(gate: Context) -> None:
    with gate.database.transaction() as tx:
        assert list(seen(gate).passed) == [experiments.candidate(tx, OWN)] == [2]
    assert seen(gate).experiment is None
    pipeline.publish(gate)
    begun = seen(gate)
    assert begun.experiment is not None
    assert (begun.gated, list(begun.passed), begun.experiment.standing) == (True, [], None)
    play(gate, 0, 0.5, 0.505)
    pipeline.publish(gate)
    running, (last,) = seen(gate).experiment, history(gate)[0][1]
    assert running is not None
    assert running.standing == last.standing
    assert running.percent == history(gate)[0][0].percent


def test_how_it_ended_is_seen(gate: Context) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.8, 0.2)
    pipeline.publish(gate)
    ended = seen(gate).ended
    assert ended is not None
    assert (ended.step, ended.state, ended.reason) == (2, "rolled_back", history(gate)[0][0].reason)
    assert (seen(gate).experiment, list(seen(gate).passed)) == (None, [])
    with gate.database.transaction() as tx:
        assert experiments.candidate(tx, OWN) is None
        assert gates.step_states(tx, OWN)[2] == "rolled back"
