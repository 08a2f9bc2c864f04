"""The Celery application: `celery -A babylon_tasks worker|beat|flower|call …`.

Messages are doorbells: they carry ids only, are acknowledged early, and losing one costs at most a
sweep, because Postgres alone says what is due. What follows from that is set below.

Importing this module asks for no setting, and changes nothing for another Celery application of the
same process: a scheduler may import it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.app.log import Logging
from celery.signals import setup_logging
from kombu import Exchange, Queue
from kombu.connection import resolve_aliases

from babylon_tasks.edge import require_our_workers
from babylon_tasks.errors import UserError
from babylon_tasks.logs import configure_logging
from babylon_tasks.settings import QUEUES, Settings, load_settings
from babylon_tasks.store.broker import KEYS

# Flower and the logs know a broker by the name in its URL.
_TRANSPORTS = {"redis": "workers.broker:Transport", "rediss": "workers.broker:TlsTransport"}
resolve_aliases.update({transport: scheme for scheme, transport in _TRANSPORTS.items()})

# Celery prefers these to what we configure, and then reads another Redis than our other clients.
_CELERYS_OWN = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL",
                "CELERY_RESULT_BACKEND")  # fmt: skip


_ALWAYS: dict[str, Any] = dict(
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
    # A Redis that refuses writes for a while (a failover, a full memory) does not end a worker.
    broker_channel_error_retry=True,
    redis_socket_timeout=30,
    # An exchange of its own for each queue; without it they share one name in every listing.
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
    task_default_queue="cpu",
    task_create_missing_queues=False,
    task_routes={"babylon.train": {"queue": "gpu"}},
    worker_send_task_events=True,
    task_send_sent_event=False,  # most messages are no work: see workers/row.py
    worker_max_tasks_per_child=None,
    worker_soft_shutdown_timeout=20.0,
    timezone="UTC",
    beat_scheduler="workers.beat:DoorbellScheduler",
)


class NotConfigured(UserError, click.ClickException):
    """A setting is missing or wrong. Every `celery` command ends with this line and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Write the line to standard error."""
        sys.stderr.write(f"{self}\n")

    def __str__(self) -> str:
        return str(self.args[0])


def configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration for these settings; no server is asked.

    Raises:
        UserError: REDIS_URL or DATABASE_URL is missing or wrong, a variable of Celery's own names
            another broker, or this folder hides our workers.
    """
    require_our_workers()
    importlib.import_module("workers")  # before Celery looks into the working folder
    settings.postgres()  # its id begins all keys in Redis: `workers/broker.py`
    server = settings.redis()
    for name in _CELERYS_OWN:
        if os.environ.get(name) not in (None, "", server.plain):
            raise UserError(f"{name} is set, and the broker is that of REDIS_URL: unset it")
    tls = server.tls.options() if server.tls else None
    return dict(
        _ALWAYS,
        broker_url=server.plain,
        broker_transport=_TRANSPORTS["rediss" if tls else "redis"],
        broker_use_ssl=tls,
        result_backend=server.plain,
        redis_backend_use_ssl=tls,
        result_backend_transport_options={"global_keyprefix": KEYS},
        broker_transport_options={
            "visibility_timeout": 900,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        beat_schedule=_beat_schedule(settings),
    )


def _beat_schedule(settings: Settings) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "produce": {"task": "babylon.produce", "schedule": settings.produce_seconds},
        "sweep": {"task": "babylon.sweep", "schedule": settings.sweep_seconds},
    }
    for entry in entries.values():
        entry["options"] = {"queue": "cpu"}
    entries["canary"] = {  # on the other queue each sweep is one
        "task": "babylon.canary",
        "args": ("gpu",),
        "schedule": settings.canary_seconds("gpu"),
        "options": {"queue": "gpu"},
    }
    return entries


class _Configuration(Mapping[str, Any]):
    """Celery's configuration, made when Celery first asks for it, and again after an error."""

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        try:
            return configuration(load_settings())
        except UserError as error:
            raise NotConfigured(str(error)) from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Logging(Logging):  # type: ignore[misc]
    """Logs as our other roles do."""

    def setup_logging_subsystem(self, *args: Any, **kwargs: Any) -> Any:
        """Configure the logs of this app alone: the signal is one for all apps of a process."""
        setup_logging.connect(_log_as_we_do)
        try:
            return super().setup_logging_subsystem(*args, **kwargs)
        finally:
            setup_logging.disconnect(_log_as_we_do)


def _log_as_we_do(**_: object) -> None:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    # Celery makes one to show its URL without the password, and kombu warns that it has no TLS.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)


def make_app() -> Celery:
    """Make the app; it reads the settings when they are first needed.

    Raises:
        UserError: Later, at its first use, as `configuration` has it.
    """
    app = Celery("babylon_tasks", log=_Logging)
    app.config_from_object(_Configuration())
    return app


def _configure_flower() -> None:
    """Have Flower of this app read our flowerconfig.py, which reads the one that a person names.

    Flower has no hook in the app; it reads the file of FLOWER_CONF or --conf, or ./flowerconfig.py.
    """
    ours = str(Path(__file__).parents[1] / "workers" / "watch" / "flowerconfig.py")
    command: Any = sys.modules.get("flower.command")
    if command is None:  # no `celery` command, which loads it first; `app.start` may follow
        if not os.environ.get("FLOWER_CONF"):
            os.environ["FLOWER_CONF"] = ours
        return
    read = command.parse_config_file

    def read_ours(path: str, final: bool = True) -> None:
        read(ours if click.get_current_context().obj.app is app else path, final=final)

    command.parse_config_file = read_ours


app = make_app()
_configure_flower()
