"""Imported by every Python process that has this folder on its PYTHONPATH: see babylon_inject."""

import os

if os.environ.get("BABYLON_INJECT"):
    import babylon_inject  # type: ignore[import-not-found]

    babylon_inject.install(os.environ["BABYLON_INJECT"])

if os.environ.get("BABYLON_PRELOAD"):
    import importlib

    importlib.import_module(os.environ["BABYLON_PRELOAD"])

if os.environ.get("BABYLON_CLOCK_HOURS"):
    import datetime

    import time_machine

    wrong = datetime.timedelta(hours=float(os.environ["BABYLON_CLOCK_HOURS"]))
    time_machine.travel(datetime.datetime.now(datetime.UTC) + wrong, tick=True).start()
