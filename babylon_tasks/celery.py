"""The Celery application: `celery -A babylon_tasks worker|beat|flower|call …`.

Messages are doorbells: they carry ids only, are acknowledged early, and losing one costs at most a
sweep, because Postgres alone says what is due. What follows from that is set below.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import setup_logging
from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from babylon_tasks.errors import UserError
from babylon_tasks.settings import QUEUES, Settings, load_settings

# Under the names of their URLs, by which Flower and the logs know a broker.
TRANSPORT_ALIASES.update(redis="workers.broker:Transport", rediss="workers.broker:Transport")


def make_app(settings: Settings) -> Celery:
    """Make the app for these settings; it asks neither server.

    Raises:
        UserError: REDIS_URL or DATABASE_URL is missing.
    """
    settings.postgres()  # its id begins all keys in Redis: `workers/broker.py`
    app = Celery("babylon_tasks", broker=settings.redis(), backend=settings.redis())
    app.conf.update(
        include=["workers.tasks", "workers.lifecycle"],
        # Pickle and an open Redis would be remote code execution.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # Postgres is the truth. Only a step keeps a result: its progress, then how it ended. Flower
        # hears of every failure by an event.
        task_ignore_result=True,
        result_expires=3600,
        # Recovery is by lease: late acknowledgement and the visibility timeout would only start
        # second copies of long steps.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 900,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        redis_socket_timeout=30,
        # An exchange of its own for each queue; without it they share one name in every listing.
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        task_default_queue="cpu",
        task_create_missing_queues=False,
        task_routes={"babylon.train": {"queue": "gpu"}},
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_max_tasks_per_child=None,
        worker_soft_shutdown_timeout=20.0,
        timezone="UTC",
        beat_schedule=_beat_schedule(settings),
        beat_scheduler="workers.beat:DoorbellScheduler",
    )
    return app


def _beat_schedule(settings: Settings) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "produce": {"task": "babylon.produce", "schedule": settings.produce_seconds},
        "sweep": {"task": "babylon.sweep", "schedule": settings.sweep_seconds},
    }
    for entry in entries.values():
        entry["options"] = {"queue": "cpu"}
    for queue in QUEUES:
        entries[f"canary-{queue}"] = {
            "task": "babylon.canary",
            "args": (queue,),
            "schedule": settings.sweep_seconds,
            "options": {"queue": queue},
        }
    return entries


@setup_logging.connect
def _log_as_we_do(**_: object) -> None:
    from babylon_tasks.logs import configure_logging

    configure_logging(load_settings().log_level)


def _configure_flower() -> None:
    """Name our flowerconfig.py in FLOWER_CONF, unless the folder has one of its own.

    Flower has no hook in the app; it reads FLOWER_CONF, or ./flowerconfig.py.
    """
    workers = importlib.util.find_spec("workers")
    if workers and workers.origin and not Path("flowerconfig.py").exists():
        config = Path(workers.origin).parent / "watch" / "flowerconfig.py"
        os.environ.setdefault("FLOWER_CONF", str(config))


_configure_flower()
try:
    app = make_app(load_settings())
except UserError as error:
    sys.stderr.write(f"{error}\n")
    raise SystemExit(2) from None
