"""`babylon models promote | rollback | pause | resume | share`, as a person types them."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

from babylon_tasks import pipeline
from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import add_window, commit_steps, hours_ago, one, query
from workers.gpu.client import TrainerProcess


def models(deployment: Deployment, *arguments: str) -> str:
    done = deployment.call("babylon", "models", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(deployment: Deployment, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(models(deployment, *arguments, "--json"))
    return found


def refused(deployment: Deployment, *arguments: str) -> str:
    done = deployment.call("babylon", "models", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    return done.stderr


def test_roll_back_promote_and_resume(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 3)
    said = models(deployment, "rollback", "--why", "it sells everything").splitlines()
    assert said[0] == "babylon-agent answers with step 2 (v1.0.1); it was step 3"
    assert said[1].startswith("promotion is paused since 20")
    assert said[1].endswith(": it sells everything")
    assert said[2] == "new steps wait until `babylon models resume`"
    states = {row["step"]: row["state"] for row in rows(deployment, "list")}
    assert states == {3: "head", 2: "served", 1: "previous"}
    assert f"{said[1]}\n" in models(deployment, "list")

    status = json.loads(deployment.call("babylon", "status", "--json").stdout)
    assert status["promotion_paused"]["why"] == "it sells everything"
    assert (status["step"], status["published_step"], status["version"]) == (3, 2, "v1.0.1")
    assert ": it sells everything (`babylon models resume`)" in " ".join(
        deployment.call("babylon", "status").stdout.split()
    )
    doctor = deployment.call("babylon", "doctor", "--json").stdout
    (found,) = (each for each in json.loads(doctor) if each["check"] == "promotion")
    assert found["ok"]
    assert "it serves step 2 of 3 (`babylon models resume`)" in found["detail"]
    assert "2 (paused)" in deployment.call("babylon", "lineages", "list").stdout
    shown = deployment.call("babylon", "lineages", "show", "babylon-agent").stdout
    assert "paused       promotion, since 20" in shown

    assert "is not older" in refused(deployment, "rollback", "3", "--why", "?")
    assert models(deployment, "promote", "v1.0.2", "--why", "no").startswith(
        "babylon-agent answers with step 3 (v1.0.2); it was step 2\npromotion is paused"
    )
    assert models(deployment, "rollback", "0", "--why", "all of it").startswith(
        "babylon-agent answers with the base model; it was step 3\n"
    )
    assert models(deployment, "resume", "--why", "repaired") == (
        "babylon-agent answers with the base model\n"
        "step 3 is promoted next, within seconds if workers run\n"
    )
    assert "is not paused" in refused(deployment, "resume", "--why", "?")
    models(deployment, "pause", "--why", "a demonstration")
    history = rows(deployment, "promotions")
    assert [(row["kind"], row["from_step"], row["to_step"]) for row in history[:5]] == [
        ("pause", 0, 0), ("resume", 0, 0), ("rollback", 3, 0), ("promote", 2, 3),
        ("rollback", 3, 2),
    ]  # fmt: skip
    assert "a demonstration" in models(deployment, "promotions")


def test_a_change_by_hand_says_what_waits_at_the_gate(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    commit_steps(deployment.context, trainer, 2, publish=False)
    deployment.env["PUBLISH"] = "gate"
    models(deployment, "pause", "--why", "a demonstration")
    assert models(deployment, "resume", "--why", "it is over").splitlines() == [
        "babylon-agent answers with the base model",
        "step 2 awaits its exam",
    ]
    shown = deployment.call("babylon", "status").stdout
    assert "gate         PUBLISH=gate\n               step 2 awaits its exam\n" in shown


def test_killed_in_the_middle_of_a_rollback(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    commit_steps(deployment.context, trainer, 3)
    kill = Injection("babylon_tasks.store.promotions.move", "kill", at="after")
    harm = injecting(kill, python_path=os.environ.get("PYTHONPATH", ""))
    rollback = ("babylon", "models", "rollback", "--why", "?")
    assert deployment.run(*rollback, env=harm).returncode == -signal.SIGKILL
    head = one(deployment.context, "SELECT * FROM rl.heads")
    assert (head["published_step"], head["promotion_paused_at"]) == (3, None)
    assert len(rows(deployment, "promotions")) == 3
    found = query(deployment.context, "SELECT version FROM trained_models WHERE status='deployed'")
    assert found == [{"version": "v1.0.2"}]
    assert "answers with step 2" in models(deployment, *rollback[2:])


def test_share(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 3)
    before = datetime.now(UTC)
    said = models(deployment, "share", "v1.0.0", "--percent", "12.5", "--why", "is it better?")
    (row,) = rows(deployment, "shares")
    starts_at = datetime.fromisoformat(row["starts_at"])
    assert timedelta(0) < starts_at - before <= timedelta(hours=1, minutes=5)
    assert (starts_at.minute, starts_at.second) == (0, 0)
    assert (row["step"], row["percent"], row["ends_at"]) == (1, 12.5, None)
    assert said == f"step 1 answers 12.5 % of the agents from {starts_at:%Y-%m-%d %H:%M} UTC on\n"
    states = {row["step"]: row["state"] for row in rows(deployment, "list")}
    assert states == {3: "served", 2: "previous", 1: "shared"}
    assert "is it better?" in models(deployment, "shares")
    assert models(deployment, "share", "1", "--percent", "0", "--why", "no").startswith(
        "no step has a share from "
    )
    for percent in ("nan", "101"):
        share = ("models", "share", "1", "--percent", percent, "--why", "?")
        assert deployment.call("babylon", *share).returncode == 2
    assert one(deployment.context, "SELECT max(percent) AS most FROM rl.shares")["most"] <= 12.5


def test_train_and_reset_say_that_promotion_is_paused(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    commit_steps(deployment.context, trainer, 3)
    models(deployment, "rollback", "1", "--why", "bad")
    add_window(deployment.context, hours_ago(9))
    pipeline.produce(deployment.context)
    said = deployment.call("babylon", "train").stdout
    assert "is promoted" not in said
    assert "not promoted: that is paused since 20" in said
    assert "step 1 serves, until `babylon models resume`\n" in models(
        deployment, "reset", "2", "--why", "a broken feed"
    )
