"""A worker says that it is there: every half minute, in `rl.workers`, for people who watch."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version

from babylon_tasks.errors import UserError
from babylon_tasks.records.workers import WorkerGpu, WorkerNote
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import workers
from babylon_tasks.store.database import Connection, Database
from workers.gpu import nvml
from workers.gpu.visible import visible_gpus

log = logging.getLogger(__name__)

_EVERY_SECONDS = 30.0
_PATIENCE_SECONDS = 3.0  # with a Postgres that does not answer


class Presence:
    """The thread of a worker's main process that writes its row.

    Each time it opens a connection of its own: the pool's processes are forks of this one.
    """

    def __init__(self, name: str, queues: Sequence[str], slots: int) -> None:
        settings = load_settings()
        self._database = Database(settings.postgres(), timeout_seconds=_PATIENCE_SECONDS)
        self._settings, self._name = settings, name
        self._queues, self._slots = sorted(queues), slots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to say it."""
        self._thread.start()

    def end(self) -> None:
        """Remove the row; where Postgres does not answer, its age says the same."""
        self._over.set()
        self._thread.join(_PATIENCE_SECONDS)
        self._write(workers.forget, self._note([]))

    def _run(self) -> None:
        while True:
            self._write(workers.note, self._note(_gpus(self._settings, self._queues)))
            if self._over.wait(_EVERY_SECONDS):
                return

    def _write(self, write: Callable[[Connection, WorkerNote], None], note: WorkerNote) -> None:
        try:
            with self._database.transaction() as tx:
                write(tx, note)
        except UserError as error:  # only a display depends on it
            log.debug("the worker's row is not written: %s", error)
        finally:
            self._database.close()

    def _note(self, gpus: list[WorkerGpu]) -> WorkerNote:
        settings, trains = self._settings, "gpu" in self._queues
        lineages = settings.lineage_names()
        return WorkerNote(
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues,
            slots=self._slots,
            trainer=settings.trainer if trains else None,
            lineages=None if lineages is None else sorted(lineages),
            gpus=gpus,
            version=version("babylon-tasks"),
        )


def _gpus(settings: Settings, queues: Sequence[str]) -> list[WorkerGpu]:
    """List the GPUs that this worker may use, with the memory that is used now."""
    if "gpu" not in queues or settings.trainer == "serverless" or not nvml.installed_gpus():
        return []
    visible = set(visible_gpus())
    return [
        WorkerGpu(gpu.uuid, gpu.name, gpu.memory_bytes, gpu.memory_used_bytes)
        for gpu in nvml.ask() or ()
        if visible & set(gpu.slots)
    ]
