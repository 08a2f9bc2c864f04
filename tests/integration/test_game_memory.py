"""A played hour: what the endpoint remembers of it is not recorded, and trained all the same."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from types import SimpleNamespace

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.call_hashes import prompt_hash
from babylon_tasks.records.captured import CapturedCall
from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.steps import Logprobs, Sample
from babylon_tasks.records.traces import decode
from babylon_tasks.records.windows import parse_window_id
from babylon_tasks.simulation.game import memory
from babylon_tasks.simulation.game.hour import DECISIONS, Answer, Hour, Question, play_hour
from babylon_tasks.simulation.game.market import DOWN, UP, Rules
from babylon_tasks.simulation.game.memory import without_remembered
from babylon_tasks.simulation.game.population import POPULATION, players
from babylon_tasks.simulation.game.prompts import write_answer
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.write import write
from babylon_tasks.work.context import Context
from tests.captured import answer, remember
from tests.integration.test_train import Scripted
from tests.rows import hours_ago, one
from workers.gpu.client import TrainerProcess

LIKELY = Logprobs((5, 6), (-0.5, -0.125))


def played(policies: int = 2, ours: bool = True) -> tuple[Hour, list[CapturedCall]]:
    """An hour, and what an endpoint remembers of it."""
    remembered = []

    def ask(questions: list[Question]) -> list[Answer]:
        answers = []
        for number, (agent, messages) in enumerate(questions):
            text = write_answer(UP if number % 3 else DOWN)
            values = tuple(-0.125 * (number + 1 + n) for n in range(2))
            answers.append(Answer(text, "babylon-agent@0", LIKELY, "babylon-agent", "stop", ours))
            remembered.append(
                answer(
                    response=text, logprobs=values, agent=agent, step=0,
                    prompt_hash=prompt_hash(messages),
                )
            )  # fmt: skip
        return answers

    hour = play_hour(1, 0, Rules(), players(POPULATION, policies), ask)  # type: ignore[arg-type]
    return hour, remembered


def recorded(hour: Hour) -> dict[str, tuple[set[str | None], set[Logprobs | None]]]:
    """The versions and log-probabilities in the trace of each agent that the model plays."""
    rows = record(hour, datetime(2026, 3, 1, 13), 1).trajectories[len(POPULATION) :]
    found = {}
    for row in rows:
        text = row.steps_json
        trace = decode(RawTrace(row.trajectory_id, row.agent_id, len(text), text))
        found[row.agent_id] = set(trace.versions), {call.logprobs for call in trace.calls}
        assert ('"finishReason"' in text) == (trace.versions[0] is not None)
    return found


def test_what_the_endpoint_remembers_is_not_recorded_and_is_trained(
    context: Context, trainer: TrainerProcess
) -> None:
    window = hours_ago(3)
    hour, remembered = played()
    remember(context, remembered)
    as_recorded = without_remembered(context.database, hour, 1)
    assert set(map(repr, recorded(as_recorded).values())) == {"({None}, {None})"}
    with psycopg.connect(context.settings.postgres(), autocommit=True) as app:
        write(app, [record(as_recorded, parse_window_id(window).replace(tzinfo=None), 1)])
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    row = one(context, "SELECT funnel, by_version FROM rl.windows")
    assert row["by_version"]["babylon-agent@0"]["calls"] == len(remembered) == 2 * DECISIONS
    found: list[Sample] = []
    assert pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    given = {
        call.logprobs for sample in found for call in sample.calls if call.logprobs is not None
    }
    assert given == {Logprobs(tuple(c.token_ids), tuple(c.logprobs)) for c in remembered}
    agents = {d.answer.version for d in itertools.chain.from_iterable(hour.decisions)}
    assert agents == {None, "babylon-agent@0"}  # the hour itself keeps what it knows


@pytest.mark.parametrize("ours", [True, False])
def test_what_is_not_remembered_is_recorded(
    context: Context, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """The endpoint has another database; or it is none of ours, and nobody waits."""
    monkeypatch.setattr(memory, "_WAIT_SECONDS", 0.05 if ours else 1e9)
    hour, remembered = played(ours=ours)
    remember(context, remembered[:DECISIONS] if ours else [])
    found = recorded(without_remembered(context.database, hour, 1))
    told = [each for each in found.values() if each[0] == {"babylon-agent@0"}]
    assert told == [({"babylon-agent@0"}, {LIKELY})] * (1 if ours else 2)


def test_it_waits_until_the_endpoint_has_written(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour, remembered = played()
    looks = []

    def write_meanwhile(seconds: float) -> None:
        looks.append(seconds)
        part = remembered[(len(looks) - 1) * DECISIONS :][:DECISIONS]
        remember(context, part)

    clock = SimpleNamespace(sleep=write_meanwhile, monotonic=time.monotonic)
    monkeypatch.setattr(memory, "time", clock)
    found = recorded(without_remembered(context.database, hour, 1))
    assert len(looks) == 2
    assert set(map(repr, found.values())) == {"({None}, {None})"}
