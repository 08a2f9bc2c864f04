"""What a worker does before it takes work: checks, the pool's size, and its end."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from billiard import active_children
from celery.concurrency import get_implementation, prefork, solo
from celery.signals import (
    beat_init,
    celeryd_init,
    heartbeat_sent,
    worker_process_shutdown,
    worker_ready,
)
from celery.worker.state import SOFTWARE_INFO, active_requests

from babylon_tasks.errors import UserError
from babylon_tasks.logs import configure_logging
from babylon_tasks.records.scores import JUDGED
from babylon_tasks.scoring.judge.ruler_call import require_installed
from babylon_tasks.scoring.rubric import load_rubric
from babylon_tasks.scratch import own_folder, remove_left_behind
from babylon_tasks.settings import QUEUES, Settings, load_settings
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.text import one_line
from babylon_tasks.training.wandb_jobs import require_usable
from workers import process, request
from workers.gpu import slots
from workers.gpu.visible import visible_gpus
from workers.presence import Presence
from workers.refusal import refusing_in_one_line, require_broker

log = logging.getLogger(__name__)

# Packages by trainer; W&B's needs no torch.
_NEEDED = {
    "torch": (("art", "ART"), ("torch", "torch"), ("peft", "peft")),
    "serverless": (("art", "ART"),),
}
_LAST_STEPS_SECONDS = 3.0  # to give back and to leave, after the soft shutdown's time

_presence: list[Presence] = []  # of a worker's main process, once it is ready


@celeryd_init.connect
def prepare_worker(conf: Any = None, options: dict[str, Any] | None = None, **_: object) -> None:
    """Check what the worker needs, and size a GPU worker's pool.

    `celery -A babylon_tasks worker -Q gpu` without another flag gets one pool process for each GPU.

    Raises:
        SystemExit: The worker cannot work here; stderr says why.
    """
    options = options or {}
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)  # Celery does so later
    with refusing_in_one_line():
        check_pool(options.get("pool") or conf.worker_pool)
        queues = chosen_queues(options)
        require_applied(settings.postgres())
        require_broker(settings)
        if "gpu" in queues:
            check_trainer(settings)
            remove_left_behind()
        if "cpu" in queues:
            check_judge(settings)
    if queues == ["gpu"]:
        if not options.get("concurrency"):
            conf.worker_concurrency = slots.count()
        log.info("gpu worker: %s", _where(settings))
    elif "gpu" in queues:
        log.warning(
            "this worker mixes queues, so its pool is not sized by GPUs: "
            "run `celery -A babylon_tasks worker -Q gpu` on GPU nodes"
        )
    if "gpu" in queues and not settings.train_rl_local:
        log.warning("this worker will not train: set TRAIN_RL_LOCAL=true to allow it")


def _where(settings: Settings) -> str:
    if settings.trainer == "serverless":
        return f"trains on W&B, at {settings.serverless_url}"
    return ", ".join(visible_gpus()) or "no GPU, one slot on the CPU"


@worker_ready.connect
def stop_on_sigterm(sender: Any = None, **_: object) -> None:
    """Make SIGTERM end a worker as SIGQUIT does.

    The worker then waits worker_soft_shutdown_timeout for its tasks and drops them. Celery alone
    would wait for the end of a step, however long, and be killed. REMAP_SIGTERM=SIGQUIT in the
    environment means the same; this way it needs no setting.
    """
    celerys = signal.getsignal(signal.SIGQUIT)
    grace_seconds = sender.app.conf.worker_soft_shutdown_timeout + _LAST_STEPS_SECONDS

    def stop(number: int, frame: FrameType | None) -> None:
        # Celery takes leave of Redis. Where Redis hangs, that takes minutes; where Redis comes back
        # meanwhile, Celery may fail. We leave without it, since Redis needs nothing from us.
        atexit.register(_leave)
        timer = threading.Timer(grace_seconds, _leave)
        timer.daemon = True
        timer.start()
        if callable(celerys):
            celerys(number, frame)

    signal.signal(signal.SIGTERM, stop)


def _leave() -> None:
    """End with 0, after the pool processes have given their leases back to Postgres."""
    for child in active_children():
        child.terminate()
    for child in active_children():
        child.join(_LAST_STEPS_SECONDS)
    for presence in _presence:
        presence.end()
    logging.shutdown()
    os._exit(0)


@worker_ready.connect
def arrive(sender: Any = None, **_: object) -> None:
    """Say from now on that the worker is there, and what it takes."""
    names = [queue.name for queue in sender.app.amqp.queues.consume_from.values()]
    _presence.append(Presence(sender.hostname, names, sender.controller.concurrency))
    _presence[0].start()
    atexit.register(_presence[0].end)


@heartbeat_sent.connect
def say_what_is_at_work(sender: Any = None, **_: object) -> None:
    """Put what the worker does now into its next heartbeat, for `workers/watch/rows.py`.

    Before it goes what nobody has heard yet.
    """
    request.tell_again(sender.eventer)
    ids = [each.id for each in list(active_requests)]
    SOFTWARE_INFO.update(at_work=ids, said_at=time.time())


@beat_init.connect
def check_servers(**_: object) -> None:
    """Check what beat needs.

    Raises:
        SystemExit: Postgres or its migrations are missing, or Redis can never work; stderr says
            what to do.
    """
    settings = load_settings()
    with refusing_in_one_line():
        require_applied(settings.postgres())
        require_broker(settings)


@worker_process_shutdown.connect
def end_trainer(**_: object) -> None:
    """Take the trainer process along; it would end by itself when its pipe closes."""
    process.close()


def check_trainer(settings: Settings) -> None:
    """Refuse a machine on which TRAINER cannot train.

    Raises:
        UserError: A package is missing, and the message names the extra; or W&B would refuse; or
            there is no private folder for temporary files.
    """
    try:
        own_folder()
    except OSError as error:
        raise UserError(f"TMPDIR cannot be used: {error.strerror or error}") from error
    if settings.trainer == "serverless":
        require_usable(settings)
    for module, name in _NEEDED.get(settings.trainer, ()):
        if importlib.util.find_spec(module) is None:
            extra = "train" if settings.trainer == "torch" else "judge"
            raise UserError(f"{name} is not installed: pip install 'babylon-tasks[{extra}]'")


def check_judge(settings: Settings) -> None:
    """Refuse a machine on which SCORING cannot ask its judge.

    Raises:
        UserError: A package is missing, or the rubric cannot be read; the message says what to do.
    """
    if settings.scoring in JUDGED:
        require_installed()
        load_rubric(settings.judge_rubric)


def check_pool(pool: Any) -> None:
    """Refuse a pool whose tasks share a process: they would share its transaction, too.

    Raises:
        UserError: The pool runs tasks in threads or greenlets.
    """
    if not issubclass(get_implementation(pool), (prefork.TaskPool, solo.TaskPool)):
        raise UserError(
            "this pool (-P) is not supported, because its tasks share a process, and so one "
            "connection to Postgres: leave -P out, and choose the number of processes with -c"
        )


def chosen_queues(options: dict[str, Any]) -> list[str]:
    """Return the queues that a worker's command line chooses; all of them without -Q and -X.

    Raises:
        UserError: There is no such queue.
    """
    chosen = _names(options.get("queues")) or list(QUEUES)
    excluded = _names(options.get("exclude_queues"))
    for name in (*chosen, *excluded):
        if name not in QUEUES:
            raise UserError(
                f"there is no queue {one_line(name, 40)}: -Q takes {' and '.join(QUEUES)}"
            )
    return [name for name in chosen if name not in excluded]


def _names(queues: Any) -> list[str]:
    if isinstance(queues, str):
        queues = queues.split(",")
    return [str(name).strip() for name in queues or ()]
