"""Flower's settings; `celery -A babylon_tasks flower` reads this file.

The file that FLOWER_CONF or --conf names is read as well, else a `flowerconfig.py` in the folder
where Flower starts. It wins over ours, but for the doors: they are looked at when all is known.

Flower shows arguments and can revoke tasks. Without FLOWER_BASIC_AUTH (or another of its
authentications) it therefore binds to loopback only, and refuses to start on another address. Its
`/metrics` needs no login; besides Flower's own figures it says how the pipeline stands. As other
roles do, it refuses to start while Postgres is away: Postgres' id begins the keys that it reads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery import current_app
from flower.command import is_flower_option
from prometheus_client import REGISTRY
from tornado.options import options

from babylon_tasks.logs import configure_logging
from babylon_tasks.settings import load_settings
from babylon_tasks.store.identity import key_prefix

try:
    from workers.refusal import refusing_in_one_line, require_broker
    from workers.watch.doors import require_sound_doors
    from workers.watch.metrics import PipelineCollector
    from workers.watch.now import first_page
    from workers.watch.pages import install
    from workers.watch.rows import format_task
    from workers.watch.saved_tasks import require_private, say_that_it_begins_anew
    from workers.watch.their_config import read_theirs
except ModuleNotFoundError:
    _ = current_app.conf.broker_url  # another package hides ours: one line says so
    raise

options.format_task = format_task
options.tasks_columns = "started,name,state,result,runtime,worker"  # the newest first
options.purge_offline_workers = 600

_arguments = sys.argv[sys.argv.index("flower") + 1 :] if "flower" in sys.argv else []
with refusing_in_one_line():
    _assigned = read_theirs(options, Path(__file__))
# The command line comes last.
options.parse_command_line(["flower", *filter(is_flower_option, _arguments)], final=False)

with refusing_in_one_line():
    _settings = load_settings()
    # Tornado has logged in a form of its own so far.
    configure_logging(_settings.log_level, _settings.log_format)
    require_sound_doors(options, os.environ, _arguments, _assigned)
    if options.persistent:
        require_private(options.db)
    if _settings.database_url:
        install(first_page(_settings), prefix=options.url_prefix)
        REGISTRY.register(PipelineCollector(_settings))
        _prefix = key_prefix(_settings.postgres())
        if _settings.redis_url:
            require_broker(_settings)
        # Flower's page of the broker counts the keys that these options name.
        current_app.conf.broker_transport_options["global_keyprefix"] = _prefix

if not options.persistent:
    say_that_it_begins_anew()
if not (options.basic_auth or options.auth or options.address):
    options.address = "127.0.0.1"
