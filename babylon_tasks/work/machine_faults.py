"""Tells a machine at fault from a bad window: several windows failed alone with one error.

A bug in a release, a broken GPU or a full memory fails every window. So when different windows have
failed at a stage on one machine, with the same error and no success between, the machine is at
fault: what it counted against them is taken back, and it stops. `rl.attempts` knows, so a restart
between two hourly windows does not hide it. A bad window alone stops no machine, however often it
is tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from babylon_tasks.errors import BabylonError, LineageAtFault, MachineAtFault
from babylon_tasks.records.windows import State
from babylon_tasks.store import attempts, training_batches
from babylon_tasks.store.attempts import AT_FAULT, Ending, RecentAttempt
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim
from babylon_tasks.text import PLACE, one_line, place_of

WINDOWS_IN_A_ROW = 3
QUOTES = ", and none is blamed: "  # then comes the text of the windows' error
# Errors about the window itself, or about a server: they say nothing about this machine.
_NOT_THE_MACHINES = re.compile(r"(JudgeFault|DamagedRow|SlowRead): ")
_DOES = {State.DUE: "scores", State.SCORED: "trains"}


def message_of(error: Exception) -> str:
    """Return an error's type and text in one line that a column can hold."""
    return one_line(f"{type(error).__name__}: {error}", 2000)


def message_with_place(error: Exception) -> str:
    """Return the same for `rl.attempts`: an error that nobody raised on purpose with its place."""
    if isinstance(error, BabylonError):
        return message_of(error)
    return f"{one_line(message_of(error), 1800)} ({place_of(error)})"


def take_back_if_at_fault(
    tx: Connection, claim: Claim, state: State, message: str, wait_seconds: float
) -> MachineAtFault | None:
    """Return the error to raise if this machine is at fault; nothing counts then.

    Call it in the transaction that counts an attempt. The windows wait so long, so that after a
    restart others come first: if these succeed, the fault is the windows' after all.

    `state` is that of the stage's windows, due or scored; `message` is the last error, as it is in
    `rl.attempts`.
    """
    error = _signature(message)
    if error is None:
        return None
    stage = "score" if state == State.DUE else "train"
    machine = claim.holder.rpartition(":")[0] + ":"
    rows = attempts.recent(tx, stage, machine)
    of_lineage = [row for row in rows if row.model_name == claim.model_name]
    of_process = [row for row in rows if row.holder == claim.holder]
    for among in (rows, of_process, of_lineage):
        failed = _in_a_row(among, error)
        if len({row.window_id for row in failed}) < WINDOWS_IN_A_ROW:
            continue
        why = one_line(AT_FAULT + message, 2000)
        for name in {row.model_name for row in failed}:
            tokens = [row.token for row in failed if row.model_name == name]
            batch_ids = attempts.take_back(tx, name, tokens, Ending.ERROR, why, wait_seconds)
            for batch_id in batch_ids:
                training_batches.reopen(tx, batch_id)
        return _error_of(among is of_lineage, claim.model_name, state, message)
    return None


def _in_a_row(rows: Sequence[RecentAttempt], error: str) -> list[RecentAttempt]:
    """Return the attempts that failed with this error since the last success, newest first.

    Not those at windows that failed before that success too: these are at fault themselves.
    """
    succeeded = (Ending.DONE, Ending.SKIPPED)
    since = next((n for n, row in enumerate(rows) if row.outcome in succeeded), len(rows))
    bad = {row.window_id for row in rows[since:] if row.outcome not in succeeded}
    return [
        row
        for row in rows[:since]
        if row.outcome == Ending.ERROR
        and row.window_id not in bad
        and _signature(row.error or "") == error
    ]


def _signature(message: str) -> str | None:
    """Return what is the same of an error in all windows; None if no machine can be to blame."""
    if _NOT_THE_MACHINES.match(message):
        return None
    place = PLACE.search(message)
    return place[1] if place else re.sub(r"\d+", "#", message)


def _error_of(one_lineage: bool, name: str, state: State, message: str) -> MachineAtFault:
    whose = f"of {name} " if one_lineage else ""
    return (LineageAtFault if one_lineage else MachineAtFault)(
        f"{WINDOWS_IN_A_ROW} windows {whose}failed here with the same error and none succeeded, so "
        f"this machine is at fault: it {_DOES[state]} no more windows {whose}until its worker is "
        f"started again{QUOTES}{message}"
    )
