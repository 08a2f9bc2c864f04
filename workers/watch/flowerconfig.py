"""Flower's settings; `celery -A babylon_tasks flower` reads this file.

Flower shows arguments and can revoke tasks. Without FLOWER_BASIC_AUTH (or another of its
authentications) it therefore binds to loopback only, and refuses to start on another address. Its
`/metrics` needs no login; besides Flower's own figures it says how the pipeline stands. As other
roles do, it refuses to start while Postgres is away: Postgres' id begins the keys that it reads.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import current_app
from prometheus_client import REGISTRY
from tornado.options import options

from babylon_tasks.settings import load_settings
from babylon_tasks.store.identity import key_prefix

try:
    from workers.refusal import refusing_in_one_line, require_broker
    from workers.watch.metrics import PipelineCollector
except ModuleNotFoundError:
    _ = current_app.conf.broker_url  # another package hides ours: one line says so
    raise

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

if not (options.basic_auth or options.auth):
    if not options.address:
        address = "127.0.0.1"
    elif options.address not in _LOOPBACK:
        sys.stderr.write(
            f"Flower on {options.address} needs authentication: "
            "set FLOWER_BASIC_AUTH=user:password\n"
        )
        raise SystemExit(2)

with refusing_in_one_line():
    _settings = load_settings()
    if _settings.database_url:
        REGISTRY.register(PipelineCollector(_settings))
        _prefix = key_prefix(_settings.postgres())
        if _settings.redis_url:
            require_broker(_settings)
        # Flower's page of the broker counts the keys that these options name.
        current_app.conf.broker_transport_options["global_keyprefix"] = _prefix

purge_offline_workers = 3600
tasks_columns = "name,uuid,state,args,result,received,started,runtime,worker"


def format_task(task: Any) -> Any:
    """Shorten names, and show windows instead of nested lists."""
    task.name = (task.name or "").removeprefix("babylon.")
    task.args = (task.args or "").strip("()[],").replace("'", "").replace("[", "").replace("]", "")
    return task
