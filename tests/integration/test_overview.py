"""What `babylon status` shows: what runs, what waits longest, who works, what today has cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from babylon_tasks.cli import status as cli_status
from babylon_tasks.cli.screen import COLUMNS, write
from babylon_tasks.cli.status_screen import sections
from babylon_tasks.cockpit.overview import overview
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.workers import WorkerGpu, WorkerNote
from babylon_tasks.store import leases, workers
from babylon_tasks.work.context import Context
from tests.rows import add_exam, commit_steps, fork, hours_ago, query

OWN = "babylon-agent"


def by_hand(context: Context, statement: str) -> None:
    query(context, f"{statement} RETURNING 1")


def add_window(context: Context, hours: int, state: str, minutes: int, model: str = OWN) -> str:
    window = hours_ago(hours)
    query(
        context,
        f"""INSERT INTO rl.windows (window_id, model_name, state, due_at, scored_at)
            VALUES (%s, %s, %s, now() - interval '{minutes} minutes',
                    now() - interval '{minutes} minutes') RETURNING 1""",
        window,
        model,
        state,
    )
    return window


def hold(context: Context, holder: str, doing: Doing | None, *resources: str) -> None:
    with context.database.transaction() as tx:
        for resource in resources:
            lease = leases.acquire(tx, resource, holder, 60.0)
            assert lease is not None
            if doing:
                leases.renew(tx, [lease], 60.0, doing=doing)


def shown(context: Context, **known: Any) -> str:
    """The screen's text; lines that were wrapped are one again."""
    data = {"queues": {"cpu": 0, "gpu": 2}, "redis_says": None, **overview(context), **known}
    text = write(sections(data), colour=False)
    assert all(len(line) <= COLUMNS for line in text.splitlines()), text
    return " ".join(text.split())


def test_an_empty_database_says_that_nothing_runs_and_nobody_works(context: Context) -> None:
    text = shown(context)
    assert "nothing no window is scored and no step is trained at this moment" in text
    assert "due 0 wait to be scored scored 0 wait for a step ended 0 trained, 0 skipped" in text
    assert "gpu 2 messages waiting; no message ever came through to a worker" in text
    assert "none No worker scores windows: start one with `celery -A" in text
    assert "serves the base model gate PUBLISH=always" in text
    assert "judge 0 answers, 0 tokens, $0.00 without a daily limit" in text
    assert "GPU 0 steps, no GPU time" in text
    assert "Last step" not in text
    assert "Other lineages" not in text


def test_the_leases_of_one_holder_are_one_piece_of_work(context: Context) -> None:
    windows = [hours_ago(hours) for hours in range(2, 18)]
    scores = [f"window/{OWN}/{window}" for window in windows]
    hold(context, "cpu-1:11", Doing("score", OWN, sorted(windows), total=16, done=3), *scores)
    hold(
        context,
        "gpu-1:12",
        Doing(
            "train", "side", windows[:2], step=7, runs=48, phase="train", done=22, total=72,
            share=0.31, loss=0.0123, tokens_per_second=8400.0, seconds_left=40.0,
        ),
        "model/side",
    )  # fmt: skip
    judged = ("judge/old", f"window/old/{windows[0]}")
    hold(context, "cpu-2:13", None, *judged)  # of a release that does not tell
    found = overview(context)["running"]
    assert [(each["stage"], each["lineage"], each["holder"]) for each in found] == [
        ("score", OWN, "cpu-1:11"),
        ("train", "side", "gpu-1:12"),
        ("judge", "old", "cpu-2:13"),
    ]
    assert (found[0]["windows"], found[0]["done"]) == (sorted(windows), 3)
    assert found[2]["windows"] == [windows[0]]
    assert all(0 <= each["seconds"] < 60 for each in found)
    text = shown(context)
    assert "train side: step 7, 2 windows, 48 runs" in text
    assert "train 31 % (22 of 72), loss 0.0123, 8,400 tokens/s, 40 s left; since" in text
    assert "on gpu-1:12" in text
    assert f"score {OWN}: 16 windows: {min(windows)}" in text


def test_each_of_several_workers_of_a_host_is_told_what_it_does(context: Context) -> None:
    notes = [
        WorkerNote(name, "a", pid, [name[:3]], 1, None, None, [], "0.2.0")
        for pid, name in enumerate(("gpu@a", "gpu2@a", "cpu@a"))
    ]
    with context.database.transaction() as tx:
        for note in notes:
            workers.note(tx, note)
    hold(context, "a:11", Doing("train", OWN, worker="gpu2@a"), f"model/{OWN}")
    hold(context, "a:12", Doing("train", "side", worker="gpu@a"), "model/side")
    hold(context, "a:13", None, f"window/{OWN}/{hours_ago(2)}")  # it has not said it yet
    hold(context, "a:14", None, "model/old")  # either of two
    found = overview(context)["running"]
    assert [each["worker"] for each in found] == ["gpu2@a", "gpu@a", "cpu@a", None]
    text = shown(context)
    assert "on a:11 (gpu2@a)" in text
    assert "on a:14 Windows of" in text


def test_the_oldest_windows_have_their_waits(context: Context) -> None:
    add_window(context, 2, "due", 5)
    due = add_window(context, 3, "due", 90)
    scored = add_window(context, 4, "scored", 12)
    add_window(context, 5, "failed", 1)
    add_window(context, 6, "due", 600, "side")
    by_hand(
        context,
        f"""UPDATE rl.windows SET last_error = 'the judge is away',
            not_before = now() + interval '1 hour' WHERE window_id = '{due}'""",
    )
    found = overview(context)
    assert found["oldest_due"]["window_id"] == due
    assert 5390 < found["oldest_due"]["seconds"] < 5500
    assert found["oldest_scored"]["window_id"] == scored
    text = shown(context)
    assert f"due 2 wait to be scored; {due} has waited 1 h 30 min, is tried again " in text
    assert "(the judge is away)" in text
    assert f"scored 1 wait for a step; {scored} has waited 12 min" in text
    assert "failed 1: `babylon windows list` says why" in text


def test_workers_with_their_gpus_and_those_that_are_silent(context: Context) -> None:
    gpu = WorkerGpu("GPU-1", "NVIDIA H200", 150_000_000_000, 65_000_000_000)
    notes = [
        WorkerNote("cpu@a", "a", 1, ["cpu"], 8, None, None, [], "0.2.0"),
        WorkerNote("gpu@a", "a", 2, ["gpu"], 1, "torch", [OWN, "side"], [gpu], "0.2.0"),
    ]
    with context.database.transaction() as tx:
        for note in notes:
            workers.note(tx, note)
    by_hand(context, "UPDATE rl.workers SET seen_at = now() - interval '5 minutes' WHERE pid = 1")
    found = {each["name"]: each for each in overview(context)["workers"]}
    assert (found["cpu@a"]["lost"], found["gpu@a"]["lost"]) == (True, False)
    assert found["gpu@a"]["gpus"][0]["memory_used_bytes"] == 65_000_000_000
    text = shown(context)
    assert "cpu cpu@a: 8 at a time, all lineages; not seen for 5 min" in text
    assert f"gpu gpu@a: 1 at a time, trainer torch, lineages {OWN}, side; seen 0 s ago" in text
    assert "NVIDIA H200: 60.5 GiB of 139.7 GiB of memory used" in text


def test_serving_last_step_and_the_day(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(publish="gate", judge_daily_usd=5.0)
    commit_steps(context, trainer, 3, publish=False)
    by_hand(context, "UPDATE rl.heads SET published_step = 0, gated = true")
    with context.database.transaction() as tx:
        tx.execute("SELECT rl.promote(%s, 2, 'promote', 'alice', 'it sells at the top')", [OWN])
    by_hand(context, "UPDATE rl.steps SET gpu_seconds = 3700, cost_usd = 3.5 WHERE step > 1")
    add_exam(context, 3, "failed", "form fell by 0.2")
    fork(context, "side", 2)
    found = overview(context)
    assert (found["published"]["step"], found["published"]["holder"]) == (2, "alice")
    assert found["gpu_today"]["gpu_seconds"] == 7400
    assert (found["gpu_today"]["usd"], found["gpu_today"]["unpriced"]) == (7.0, 1)
    assert (found["gpu_today"]["steps"], found["gpu_today"]["exams"]) == (3, 3)
    text = shown(context)
    assert "serves v1.0.1 (step 2) since" in text
    assert "promote, alice: it sells at the top newest step 3 does not serve" in text
    assert "step 3 failed its exam" in text
    assert "form fell by 0.2" in text
    assert "step 3 v1.0.2, committed 0 s ago: 1 window, " in text
    assert " trained tokens" in text
    assert "MFU" not in text, "it is not known of a CPU"
    assert "$0.00 of the daily limit of $5.00" in text
    assert "3 steps, 2 h 3 min of GPU time, $7.00 without 1 step of unknown price; 3 exams" in text
    assert "side active, step 2, serves 2; 0 due" in text


def note_canaries(context: Context) -> None:
    """A message came through each queue ten minutes ago."""
    by_hand(
        context,
        """INSERT INTO rl.canaries (model_name, queue, holder, ran_at)
           VALUES ('*', 'cpu', 'a:1', now() - interval '10 minutes'),
                  ('*', 'gpu', 'a:2', now() - interval '10 minutes')""",
    )


def test_a_queue_is_late_by_its_canarys_interval(make_context: Callable[..., Context]) -> None:
    """On `gpu` that is four times as long: SWEEP_SECONDS says how long both are."""
    note_canaries(make_context())
    late = [overview(make_context(sweep_seconds=n))["late_queues"] for n in (15, 60, 200)]
    assert late == [["cpu", "gpu"], ["cpu"], []]


def test_a_queue_is_late_only_while_its_worker_does_nothing(context: Context) -> None:
    note_canaries(context)
    hold(context, "gpu-1:12", Doing("train", OWN), f"model/{OWN}")
    data = {"queues": None, "redis_says": "Redis is away", **overview(context)}
    (queues,) = [section for section in sections(data) if section.title == "Queues"]
    assert [(line.label, line.text, line.bad) for line in queues.lines] == [
        ("cpu", "a message came through 10 min ago", True),
        ("gpu", "a message came through 10 min ago (a worker is busy)", False),
        ("Redis", "Redis is away", True),
    ]


def test_many_lines_of_a_kind_are_cut_short(context: Context) -> None:
    for number in range(12):
        hold(context, f"cpu:{number}", None, f"window/{OWN}/2026-01-01T{number:02}:00")
    assert "and 4 more: `babylon status --json` has all" in shown(context)


def test_work_that_a_later_release_says_in_another_way_is_known_by_its_leases(
    context: Context,
) -> None:
    hold(context, "gpu:7", Doing("train", OWN), f"model/{OWN}")
    by_hand(context, """UPDATE rl.leases SET doing = '{"stage": "distil", "lineage": 7}'""")
    assert f"train {OWN}: 0 windows begun; since" in shown(context)


def test_workers_that_are_not_seen_are_counted_where_they_are_not_named(context: Context) -> None:
    by_hand(
        context,
        """INSERT INTO rl.workers
               (name, host, pid, queues, slots, gpus, version, started_at, seen_at)
           SELECT 'w' || n, 'h', n, '{cpu}', 1, '[]', '1', now(), now() - n * interval '20 s'
             FROM generate_series(0, 19) AS n""",
    )
    assert "and 12 more: `babylon status --json` has all" in shown(context)
    assert " of these are not seen" in shown(context)


def test_redis_away_shows_the_rest(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> dict[str, int]:
        raise ServerUnavailable("cannot reach Redis")

    monkeypatch.setattr(cli_status, "load_settings", lambda: context.settings)
    monkeypatch.setattr(cli_status, "queue_lengths", away)
    add_window(context, 2, "due", 5)
    plain = CliRunner().invoke(cli_status.status, [])
    assert "Redis        cannot reach Redis" in plain.output
    assert "1 wait to be scored" in plain.output
    assert str(plain.exception) == "cannot reach Redis"
    document = json.loads(CliRunner().invoke(cli_status.status, ["--json"]).output)
    assert (document["queues"], document["redis_says"]) == (None, "cannot reach Redis")
    assert document["windows"]["due"] == 1
