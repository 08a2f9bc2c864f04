"""Scoring as a person uses it: by hand, side by side, checked, and with a judge that is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from tests.acceptance.conftest import Deployment
from tests.judge_server import JudgeServer, content_filter
from tests.rows import add_trajectory, add_window, hours_ago, one, query, states, steps

NO_FORMAT = replace(
    content_filter, error={"message": "This response_format type is unavailable now"}
)


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


def judged(judge: JudgeServer) -> dict[str, str]:
    return {
        "JUDGE_MODEL": "openai/judge",
        "JUDGE_BASE_URL": judge.url,
        "JUDGE_INPUT_USD_PER_MILLION": "1",
        "JUDGE_OUTPUT_USD_PER_MILLION": "4",
    }


@pytest.mark.slow
def test_one_window_by_two_scorers(deployment: Deployment, judge: JudgeServer) -> None:
    context, window = deployment.context, hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    pipeline.score(context)
    deployment.start("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", env=judged(judge))
    done = deployment.call("babylon", "windows", "enqueue", window, "--scoring", "ruler")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{window} is due\n"
    deployment.wait(lambda: one(context, "SELECT scorer FROM rl.windows")["scorer"] == "ruler")
    show = ("babylon", "windows", "show", window, "--scores")
    told = json.loads(deployment.call(*show, "--json").stdout)
    assert (told["state"], told["scoring"], told["scorer"]) == ("scored", "ruler", "ruler")
    assert told["judge"]["answers"] == 1
    assert told["judge"]["usd"] > 0
    assert [set(each["scores"]) for each in told["by_scorer"]] == [{"heuristic", "ruler"}] * 3
    table = deployment.call(*show).stdout
    assert "heuristic" in table
    assert "ruler" in table
    status = json.loads(deployment.call("babylon", "status", "--json").stdout)
    assert status["judge_today"]["answers"] == 1
    assert status["judge_today"]["daily_limit_usd"] is None
    done = deployment.call("babylon", "windows", "enqueue", "--scoring", "ruler")
    assert done.returncode == 2
    assert done.stderr == "--scoring is for windows that are named\n"


def test_the_funnel_from_rows_to_tokens(deployment: Deployment) -> None:
    context, window = deployment.context, hours_ago(2)
    add_window(context, window)
    add_trajectory(context, window, "agent-9", stepsJson=steps(1, count=1))
    add_trajectory(context, window, "agent-8", stepsJson="[{")
    add_trajectory(context, window, "agent-7", isEvaluation=True)
    done = deployment.call("babylon", "train", "--max-per-window", "2", env={"MIN_ACTIONS": "2"})
    assert done.returncode == 0, done.stderr
    assert "step 1 (v1.0.0): 1 windows, 2 trajectories" in done.stdout
    assert "v1.0.0 is promoted" in done.stdout
    told = json.loads(deployment.call("babylon", "windows", "show", window, "--json").stdout)
    assert told["rows"] == {
        "not_training_data": 0,
        "evaluation": 1,
        "excluded": 0,
        "other_agents": 0,
        "trajectories": 6,
    }
    counts = {name: count for name, count in told["funnel"].items() if count}
    assert counts == {
        "trajectories": 5,
        "unreadable": 1,
        "few_actions": 1,
        "over_maximum": 1,
        "scored": 2,
        "evaluations": 1,
        "calls": 6,
        "sequences": 6,
    }
    shown = deployment.call("babylon", "windows", "show", window).stdout
    assert all(len(line) <= 80 or "files" in line for line in shown.splitlines())
    words = " ".join(shown.split())
    assert "rows 6; left out: 1 evaluation trajectories 5; left out: 1 unreadable" in words
    assert "1 unreadable, 1 few_actions, 1 over_maximum scored 2 (and 1 with isEval" in words
    assert "2 runs mean 0." in words or "3 runs mean 0." in words
    assert ", standard deviation 0." in words
    assert f"{window} of babylon-agent: trained Way due 20" in words
    assert "by step 1 (v1.0.0) has " in words
    assert "step 1 v1.0.0: 1 window, 2 runs, loss 0, committed 20" in words
    assert "now serves v1.0.0 (step 1)" in words
    assert told["step_state"] == "served"
    assert sum(told["score_tenths"]) == told["scores"]["trajectories"]


def test_train_takes_upstreams_options(deployment: Deployment, tmp_path: Path) -> None:
    add_window(deployment.context, hours_ago(2), agents=3)
    add_window(deployment.context, hours_ago(4), agents=2)
    add_window(deployment.context, hours_ago(9), agents=3)
    options = ["--min-agents", "3", "--lookback-hours", "6", "--model", "none", "--dropout", "0.0"]
    done = deployment.call("babylon", "train", *options, "--json", env={"REDIS_URL": ""})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "steps": [{"step": 1, "version": "v1.0.0"}],
        "published": ["v1.0.0"],
        "left": {},
    }
    assert states(deployment.context) == {hours_ago(2): "trained"}
    for wrong, why in [
        (["--dropout", "0.9"], "DROPOUT: Input should be less than or equal to 0.5\n"),
        (
            ["--min-agents", "1"],
            "MIN_AGENTS_PER_WINDOW: Input should be greater than or equal to 2\n",
        ),
        (["--model", "other"], "model babylon-agent was started from none, BASE_MODEL is other"),
    ]:
        add_window(deployment.context, hours_ago(3))
        done = deployment.call("babylon", "train", *wrong)
        assert done.returncode == 2
        assert why in done.stderr
        assert "Traceback" not in done.stderr


def test_a_judge_is_checked(deployment: Deployment, judge: JudgeServer) -> None:
    window = hours_ago(2)
    add_window(deployment.context, window, agents=6)
    judge.position_bias = 0.1
    judge.refuses = lambda body: NO_FORMAT if "response_format" in body else None
    judge.score_of = lambda text: 0.5 if "$0" not in text else 0.4
    done = deployment.call("babylon", "judge", "check", "--json", env=judged(judge))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["window_id"], told["trajectories"]) == (window, 6)
    # The bias runs from +0.1 to -0.1 over the six: halves differ by 0.12 on average.
    assert told["position_bias"] == pytest.approx(0.12, abs=0.01)
    assert told["tokens"] > 0
    assert told["usd"] > 0
    assert told["left_out"] == ["response_format"]
    assert len([each for each in judge.requests if each.behaviour == "good"]) == 2
    # Nothing else was written than what it cost.
    assert states(deployment.context) == {}
    assert len(query(deployment.context, "SELECT * FROM rl.judgments")) == 2


def test_a_missing_key_is_seen_before_seconds_of_imports(deployment: Deployment) -> None:
    env = {"SCORING": "ruler", "OPENAI_API_KEY": ""}
    command = ("babylon", "judge", "check")
    done = deployment.run(*command, env={**env, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 2
    assert "set JUDGE_API_KEY or OPENAI_API_KEY, or JUDGE_BASE_URL" in done.stderr
    assert "litellm" not in done.stderr


def test_past_windows_by_other_recipes(
    deployment: Deployment, judge: JudgeServer, tmp_path: Path
) -> None:
    context, windows = deployment.context, [hours_ago(3), hours_ago(2)]
    for window in windows:
        add_window(context, window, agents=4)
    pipeline.produce(context)
    pipeline.score(context)
    compare = ("babylon", "scores", "compare")
    rubric = tmp_path / "patience.md"
    rubric.write_text("Reward patience.")
    one_rubric = ("--scoring", "ruler", "--set", f"JUDGE_RUBRIC={rubric}")
    done = deployment.call(*compare, *one_rubric, "--json", env=judged(judge))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["scorer"], told["judge"]["model"]) == ("ruler", "openai/judge")
    assert [each["window_id"] for each in told["windows"]] == windows
    assert told["judge"]["bought"]["answers"] == len(judge.requests) == 2
    assert told["judge"]["day"]["usd"] == pytest.approx(12 * told["judge"]["bought"]["usd"])
    assert "Reward patience." in str(judge.requests[0].body)
    done = deployment.call(*compare, *one_rubric, "--last", "1", env=judged(judge))
    assert done.returncode == 0, done.stderr
    assert windows[0] not in done.stdout
    assert "cost           0 answers, 0 tokens, $0.0000 of openai/judge\n" in done.stdout
    assert len(judge.requests) == 2
    named = ("--windows", f"{windows[0]}, {windows[1]}", "--windows", windows[1])
    free = ("--set", "SCORING=correctness")
    done = deployment.call(*compare, *free, *named, env={"SCORING": "ruler"})
    assert done.returncode == 0, done.stderr
    assert "mean of 2 windows" in done.stdout
    assert "cost           none: correctness asks no judge\n" in done.stdout
    own = ("--set", "SCORING=heuristic", "--set", "MIN_REWARD_SPREAD=0.9")
    made = deployment.call("babylon", "lineages", "create", "other", *own)
    assert made.returncode == 0, made.stderr
    for table in ("windows", "scores"):
        change = f"UPDATE rl.{table} SET model_name = 'other' WHERE window_id = %s RETURNING 1"
        query(context, change, windows[0])
    for less, after in [((), "skipped"), (("--set", "MIN_REWARD_SPREAD="), "scored")]:
        done = deployment.call(
            *compare, "--lineage", "other", *less, "--json", env={"SCORING": "correctness"}
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["scorer"], told["windows"][0]["after"]) == ("heuristic", after)
        assert [each["window_id"] for each in told["windows"]] == windows[:1]
    for wrong, why in [
        (["--windows", "yesterday"], "'yesterday' is not a window id"),
        (["--windows", hours_ago(9)], f"no row for babylon-agent: {hours_ago(9)}; "),
        (["--last", "2", *named], "name the windows with --windows, or count them with --last"),
        (["--lineage", "nobody"], "no lineage is called nobody: "),
        (["--set", "DROPOUT=2"], "DROPOUT: Input should be less than or equal to 0.5"),
        (["--set", "REDIS_URL=x"], "REDIS_URL is a setting of the whole deployment"),
        (["--scoring", "ruler", *free], "--scoring and --set SCORING name two scorers"),
        (["--set", "MIN_ACTIONS=9"], ""),
    ]:
        done = deployment.call(*compare, *wrong)
        assert done.returncode == (2 if why else 0)
        assert done.stderr.startswith(why)
        assert done.stderr.count("\n") == bool(why)
    assert "heuristic, skipped" in done.stdout
    assert "0 agents with usable traces, needs 2; 4 left out now" in done.stdout


@pytest.mark.slow
def test_a_worker_whose_judge_cannot_be_asked_refuses_to_start(deployment: Deployment) -> None:
    command = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu")
    missing = {"SCORING": "ruler", "JUDGE_RUBRIC": "nowhere.md"}
    done = deployment.run(*command, env=missing)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("JUDGE_RUBRIC=nowhere.md cannot be read")
    env = {"SCORING": "ruler", "OPENAI_API_KEY": ""}
    done = deployment.call("babylon", "doctor", "--json", env=env)
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert not found["scoring"]["ok"]
    assert "set JUDGE_API_KEY or OPENAI_API_KEY" in found["scoring"]["detail"]
    (deployment.folder / "ca.pem").write_text("nonsense")
    env = {"SCORING": "ruler", "JUDGE_BASE_URL": "https://h/v1", "SSL_CERT_FILE": "ca.pem"}
    done = deployment.run("babylon", "doctor", "--json", env=env)
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert "is SSL_CERT_FILE, if it is set, a file of certificates?" in found["scoring"]["detail"]


def test_brackets_in_what_others_wrote_break_no_table(
    deployment: Deployment, judge: JudgeServer
) -> None:
    context, window = deployment.context, hours_ago(2)
    for n, agent in enumerate(("[/b]", "agent [bold]", "c")):
        add_trajectory(context, window, agent, stepsJson=steps(100 * n))
    judge.default = replace(content_filter, error={"message": "bad [/INST] [bold] thing"})
    env = {**judged(judge), "SCORING": "ruler", "RETRY_SECONDS": "60"}
    done = deployment.call("babylon", "train", env=env)
    assert done.returncode == 2
    assert "nothing was trained, windows wait: JudgeUnavailable" in done.stderr
    shown = deployment.call("babylon", "windows", "show", window, "--scores")
    assert shown.returncode == 0, shown.stderr
    assert "[/INST] [bold] thing" in " ".join(shown.stdout.split())
    listed = deployment.call("babylon", "windows", "list")
    assert listed.returncode == 0, listed.stderr
    deployment.call("babylon", "windows", "enqueue", window, "--scoring", "heuristic")
    deployment.call("babylon", "train")
    shown = deployment.call("babylon", "windows", "show", window, "--scores")
    assert "agent [bold]" in shown.stdout
    told = deployment.call("babylon", "windows", "enqueue", window, "--scoring", "blend")
    assert told.returncode == 2
    assert told.stderr == "a window that was trained is not scored again\n"
