"""What this machine could not do: others may be able to."""

from __future__ import annotations

import time

from babylon_tasks.errors import LineageAtFault, MachineAtFault
from babylon_tasks.store.lineages import Stage

# Seconds that a machine which cannot train rests at least, also with RETRY_SECONDS=0: another one
# must get the next message.
LEAST_REST_SECONDS = 1.0
_MOST_REST_SECONDS = 3600.0
_MACHINE_AT_FAULT = 2  # lineages that failed, and none was trained meanwhile


class Unable:
    """Remembers for one process which lineages failed here, each failure twice as long.

    A lineage whose base model or checkpoint this machine cannot load must not keep it from the
    others. A machine that can train nothing must not try them all. One that is at fault itself does
    nothing more until it is started again.
    """

    def __init__(self) -> None:
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and how long
        self._since_success: set[str] = set()  # lineages that failed since one was trained
        self._stopped: dict[Stage, MachineAtFault] = {}
        self._stopped_lineages: dict[Stage, set[str]] = {"score": set(), "train": set()}

    def failed(self, lineage: str, retry_seconds: float) -> None:
        """Note that a lineage cannot be trained here now."""
        self._since_success.add(lineage)
        least = max(retry_seconds, LEAST_REST_SECONDS)
        _, before = self._rests.get(lineage, (0.0, 0.0))
        seconds = min(max(least, before * 2), max(least, _MOST_REST_SECONDS))
        self._rests[lineage] = time.monotonic() + seconds, seconds

    def trained(self, lineage: str) -> None:
        """Note that a lineage was trained here."""
        self._since_success.clear()
        self._rests.pop(lineage, None)

    def stop(self, stage: Stage, lineage: str, error: MachineAtFault) -> None:
        """Note that this machine is at fault: for good, for all lineages or for this one."""
        if isinstance(error, LineageAtFault):
            self._stopped_lineages[stage].add(lineage)
        else:
            self._stopped[stage] = error

    def stopped(self, stage: Stage) -> str | None:
        """Return why this machine does nothing more at a stage, or None."""
        return str(self._stopped[stage]) if stage in self._stopped else None

    def lineages(self, stage: Stage = "train") -> set[str]:
        """Return the lineages to leave to other machines now."""
        now = time.monotonic()
        resting = {lineage for lineage, (until, _) in self._rests.items() if until > now}
        return self._stopped_lineages[stage] | (resting if stage == "train" else set())

    def machine(self) -> bool:
        """Tell whether the machine is at fault, since several lineages failed and none trained."""
        return "train" in self._stopped or len(self._since_success) >= _MACHINE_AT_FAULT
