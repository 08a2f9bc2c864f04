"""After the gradient: what an outage of Postgres finds unwritten is written when it is over."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.steps import Trainer
from babylon_tasks.work.context import Context
from tests.rows import add_request, add_window, hours_ago, one, query


def end_session(url: str, pid: int) -> None:
    """The server ends another session, as it does with all of them when it stops."""
    with psycopg.connect(url, autocommit=True) as killer:
        killer.execute("SELECT pg_terminate_backend(%s)", [pid])


def losing_its_connection(
    url: str, real: Callable[..., Any], moment: str, lost: list[str]
) -> Callable[..., Any]:
    """The function, but at its first call the connection is lost before it writes or in COMMIT."""

    def wrapped(tx: Any, *arguments: Any) -> Any:
        if lost:
            return real(tx, *arguments)
        lost.append(moment)
        if moment == "before":
            end_session(url, tx.info.backend_pid)
        answer = real(tx, *arguments)
        tx.execute("COMMIT")
        tx.execute("BEGIN")
        end_session(url, tx.info.backend_pid)
        tx.execute("SELECT 1")
        return answer

    return wrapped


@pytest.mark.parametrize("moment", ["before", "in COMMIT"])
@pytest.mark.parametrize(
    "write",
    ["steps.begin_checkpoint", "training_batches.read", "steps.commit"],
)
def test_an_outage_after_the_gradient_costs_no_step_and_no_attempt(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, write: str, moment: str
) -> None:
    window = hours_ago(2)
    add_window(context, window)
    add_request(context, "batch-1", window, "v2.0.0")
    pipeline.produce(context)
    pipeline.score(context)
    module, name = write.split(".")
    path, lost = f"babylon_tasks.store.{module}", list[str]()
    real = getattr(importlib.import_module(path), name)
    wrapped = losing_its_connection(context.settings.postgres(), real, moment, lost)
    monkeypatch.setattr(f"{path}.{name}", wrapped)
    report = pipeline.train(context, trainer)
    assert lost == [moment]
    assert report
    assert report.version == "v2.0.0"
    assert (Path(report.checkpoint) / "manifest.json").exists()
    row = one(context, "SELECT state, attempts FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("trained", 0)
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []
    (attempt,) = query(context, "SELECT outcome FROM rl.attempts WHERE stage = 'train'")
    assert attempt["outcome"] == "done"
