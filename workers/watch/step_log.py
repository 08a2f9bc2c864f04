"""Logs committed steps to W&B: `python -m workers.watch.step_log`, and a thread to run it.

What is logged is read from Postgres, so a step is logged once it is committed, whoever trained it;
what could not be logged is logged after the next one. One run a model name, a step of it a step of
the model; exams and experiments go with it (`workers.watch.gate_log`). W&B may hang or be away: it
has a process of its own, and nothing waits for it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from babylon_tasks.errors import BabylonError, Retryable, UserError
from babylon_tasks.logs import configure_logging
from babylon_tasks.records.versions import parse_version
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import leases, steps
from babylon_tasks.store.database import Database
from babylon_tasks.store.steps import StepToLog
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context, this_holder
from babylon_tasks.work.fleet import Fleet
from workers.watch import gate_log
from workers.watch.gate_log import GateLog

log = logging.getLogger("workers.watch.step_log")

_MOST_SECONDS = 100  # for one run of the process
_LAST_SECONDS = 10  # for it to end after that
_LEASE_SECONDS = 120.0  # longer than both: the next process waits so long for one that was killed
_INIT_SECONDS = 30  # for W&B to answer at all
_AT_ONCE = 1000  # steps in one run of wandb
_FOLDER = ".babylon"  # wandb makes `wandb` in it; WANDB_DIR names another

_NAMES = {
    "loss": "train/loss",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "policy_change": "train/policy_change",
    "reward_mean": "reward/mean",
    "reward_std": "reward/std",
    "sequences": "data/sequences",
    "dropped_sequences": "data/dropped_sequences",
    "context_tokens": "data/context_tokens",
    "staleness_mean": "staleness/mean",
    "staleness_max": "staleness/max",
    "staleness_known": "staleness/known",
    "logprobs_share": "recorded/logprobs_share",
    "ratio_mean": "recorded/ratio_mean",
    "ratio_clipped": "recorded/ratio_clipped",
    "kl_recorded": "recorded/kl",
}


class StepLogger:
    """Runs the process that logs, one at a time; who calls it waits for none of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._committed = threading.Event()
        self._thread = threading.Thread(target=self._log_all, daemon=True)

    def step_committed(self) -> None:
        """Log what is committed, and return at once; one more run logs what comes meanwhile."""
        if not self._thread.is_alive():
            self._thread.start()
        self._committed.set()

    def _log_all(self) -> None:
        while self._committed.wait():
            self._committed.clear()
            log_steps(self._settings)


def log_steps(settings: Settings) -> None:
    """Log the steps that W&B does not have yet, in a process of its own; it logs its errors."""
    if settings.wandb_mode == "disabled" or settings.trainer == "noop":
        return
    command = [sys.executable, "-P", "-m", "workers.watch.step_log"]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - our own module
    except OSError as error:  # no memory or process for it now
        log.warning("steps are not logged to W&B: %s", error)


def wandb_metrics(step: StepToLog) -> dict[str, float]:
    """Name a step's figures as W&B shows them; finite numbers only."""
    figures: dict[str, Any] = {
        _NAMES[name]: value for name, value in step.metrics.items() if name in _NAMES
    }
    figures |= {f"seconds/{phase}": seconds for phase, seconds in step.seconds.items()}
    figures |= {f"data/{name}": count for name, count in step.funnel.items()}
    figures |= {
        "data/windows": len(step.window_ids),
        "data/trajectories": step.trajectories,
        "data/trainable_tokens": step.trainable_tokens,
        "speed/tokens_per_second": step.tokens_per_second,
        "speed/mfu": step.mfu,
        "speed/peak_memory_gb": step.peak_memory_bytes and step.peak_memory_bytes / 1e9,
        "cost/gpu_seconds": step.gpu_seconds,
        "cost/usd": step.cost_usd,
    }
    newest = max(step.badly_by_version, key=_number, default="")
    figures["data/badly_share"] = step.badly_by_version.get(newest)
    numbers = {name: float(value) for name, value in figures.items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _number(version: str) -> tuple[int, ...]:
    """Return a version's numbers; those of an ancestor, which has its name before, come first."""
    name, _, last = version.rpartition("-")
    return (not name, *(parse_version(last) or ()))


def main() -> int:
    """Log every step, of all lineages, that W&B does not have yet; return 1 where that failed."""
    configure_logging("INFO")
    signal.signal(signal.SIGALRM, _give_up)  # wandb retries for hours where a network hangs
    signal.alarm(_MOST_SECONDS)
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        fleet = Fleet.of_deployment(settings, this_holder())
        for context in fleet.active():
            _log_lineage(context)
    except BabylonError as error:
        log.warning("steps are not logged to W&B: %s", error)
        return 1
    except KeyboardInterrupt:  # meant for the command that started us
        logging.shutdown()
        os._exit(130)  # wandb's own end would wait for W&B
    return 0


def _give_up(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LAST_SECONDS)
    raise Retryable(f"W&B took longer than {_MOST_SECONDS} s")


def _log_lineage(context: Context) -> None:
    """Log the steps of a lineage, unless another process does so now."""
    database, settings = context.database, context.settings
    with database.transaction() as tx:
        lease = leases.acquire(tx, f"wandb/{context.lineage.name}", context.holder, _LEASE_SECONDS)
    if lease is None:
        return
    try:
        _log_all(database, settings)
    finally:
        with database.transaction() as tx:
            leases.release(tx, [lease])


def _log_all(database: Database, settings: Settings) -> None:
    while True:
        with database.transaction() as tx:
            rows = steps.to_log(tx, settings.model_name, _AT_ONCE)
            decided = gate_log.to_log(tx, settings.model_name, rows)
        if not rows:
            return
        _log(settings, rows, decided)
        with database.transaction() as tx:
            steps.logged(tx, settings.model_name, [step.step for step in rows])
            gate_log.logged(tx, settings.model_name, decided)


def _log(settings: Settings, rows: Sequence[StepToLog], decided: GateLog) -> None:
    """Log the steps, and what was decided before them, to the run of the lineage.

    Raises:
        Retryable: W&B does not take the steps.
        UserError: wandb is not installed.
    """
    for name in [name for name, value in os.environ.items() if not value]:
        if name.startswith("WANDB_"):
            del os.environ[name]  # wandb refuses an empty value
    if settings.wandb_api_key:
        os.environ["WANDB_API_KEY"] = settings.wandb_api_key.get_secret_value()
    folder = Path(os.environ.setdefault("WANDB_DIR", _FOLDER))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        import wandb

        with wandb.init(
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            # Not the bare name, which ART and W&B's own training give to their runs.
            id=f"{settings.model_name}-steps",
            name=settings.model_name,
            resume="allow",
            mode=settings.wandb_mode or ("online" if settings.wandb_api_key else "offline"),
            config={"model_name": settings.model_name, "base_model": settings.base_model},
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_SECONDS,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        ) as run:
            for names, axis in gate_log.AXES.items():
                run.define_metric(names, step_metric=axis)
            for step in rows:
                if step.step >= run.starting_step:
                    more = decided.metrics.get(step.step, {})
                    run.log(wandb_metrics(step) | more, step=step.step)
                else:  # an earlier run of this died before it could note that
                    log.warning("W&B has step %d of %s already", step.step, settings.model_name)
    except ImportError:
        raise UserError("wandb is not installed: pip install 'babylon-tasks[train]'") from None
    except BabylonError:
        raise
    except Exception as error:  # wandb's own, and those of its process and its network
        raise Retryable(one_line(f"{type(error).__name__}: {error}")) from error


if __name__ == "__main__":
    sys.exit(main())
