"""What Flower shows."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.state import State

from workers.watch.rows import format_task


@pytest.mark.parametrize(
    ("name", "args", "shown"),
    [
        ("babylon.train", "babylon-agent: step 13, 6 windows, 48 runs",
         "train babylon-agent: step 13, 6 windows, 48 runs"),
        ("babylon.sweep", None, "sweep"),
        (None, None, ""),
    ],
)  # fmt: skip
def test_a_task_is_named_by_what_it_does(name: str | None, args: str | None, shown: str) -> None:
    task = SimpleNamespace(name=name, args=args, state="SUCCESS", result="None")
    assert (format_task(task).name, format_task(task).result) == (shown, "")


def test_what_failed_says_why_and_not_how_far_it_was() -> None:
    task = SimpleNamespace(
        name="babylon.train", args="", state="FAILURE", result="train 31 %", exception="no disk"
    )
    assert format_task(task).result == "no disk"


@pytest.mark.parametrize(
    ("worker", "heard_ago", "state"),
    [
        ({"alive": True}, 3600.0, "STARTED"),  # of an earlier release
        ({"alive": True, "said_at": 200.0, "at_work": ["other", "id"]}, 3600.0, "STARTED"),
        ({"alive": True, "said_at": 102.0, "at_work": []}, 3600.0, "STARTED"),  # it has just begun
        ({"alive": False, "said_at": 200.0, "at_work": ["id"]}, 3600.0, "LOST"),
        ({"alive": True, "said_at": 200.0, "at_work": ["other"]}, 3600.0, "LOST"),
        ({"alive": True, "said_at": 200.0, "at_work": ["other"]}, 0.0, "STARTED"),
    ],
)
def test_what_is_not_done_any_more_does_not_seem_to_go_on(
    worker: dict[str, Any], heard_ago: float, state: str
) -> None:
    task = State().Task("id", name="babylon.train", state="STARTED", result="train 31 %")
    task.timestamp, task.started, task.worker = (
        time.time() - heard_ago,
        100.0,
        SimpleNamespace(hostname="gpu@a", **worker),
    )
    shown = format_task(copy.copy(task))  # as Flower does, which leaves out what it does not know
    assert shown.state == state
    assert shown.result.endswith("train 31 %")


@pytest.mark.parametrize("end", ["task-succeeded", "task-retried", "task-failed"])
def test_an_end_that_is_heard_twice_changes_nothing(end: str) -> None:
    """Nor one that is heard after the progress of before."""
    state = State()
    event = {"hostname": "gpu@a", "uuid": "id", "local_received": 3.0, "pid": 1, "utcoffset": 0}
    state.event({**event, "type": "task-STARTED", "timestamp": 1.0, "clock": 1, "result": "31 %"})
    ended = {**event, "type": end, "timestamp": 2.0, "runtime": 1.5, "result": "done"}
    seen = []
    for clock in (2, 3):
        state.event({**ended, "clock": clock})
        (task,) = state.tasks.values()
        seen.append((task.state, task.result, task.runtime, task.timestamp, task.succeeded))
    assert seen[0] == seen[1]
    assert seen[0][1:4] == ("done", 1.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "of_the_folder", "address"),
    [
        ("", None, "127.0.0.1"),
        ("options.basic_auth = ['user:password']", None, ""),
        ("options.address = 'localhost'", None, "localhost"),
        ("", "basic_auth = 'user:password'", ""),
        ("", "max_tasks = 5", "127.0.0.1"),
    ],
)
def test_it_is_open_on_loopback_only(
    changes: str, of_the_folder: str | None, address: str, tmp_path: Path
) -> None:
    """Also with a flowerconfig.py of the folder, which does not replace ours."""
    if of_the_folder is not None:
        (tmp_path / "flowerconfig.py").write_text(of_the_folder)
    code = f"""
import flower.options
from tornado.options import options
{changes}
import workers.watch.flowerconfig as config
print(options.address, options.purge_offline_workers)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"{address} 600\n"


@pytest.mark.parametrize(
    ("app", "columns"), [("other", "name,uuid,"), ("babylon_tasks", "started,name,")]
)
def test_flower_of_another_app_that_rings_for_us_is_left_alone(
    app: str, columns: str, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(
        "import celery, babylon_tasks.celery\napp = celery.Celery('other', broker='memory://')\n"
    )
    (tmp_path / "flowerconfig.py").write_text(
        "from tornado.options import options\nraise SystemExit(options.tasks_columns)\n"
    )
    celery = Path(sys.executable).with_name("celery")
    done = subprocess.run(
        [celery, "-A", app, "flower"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stderr.startswith(columns)
