"""Child processes in sessions of their own, each of which gets signals as a whole (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

# The kernel ends a child with the *thread* that started it, so one thread starts them all.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that leads a session of its own, adds to `log`, and ends when we do."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    return _spawner.submit(start).result()


def session(leader: int) -> list[int]:
    """Return the living processes of the session that `leader` leads or led, oldest first."""
    found = []
    for pid in every_pid():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and not _is_zombie(pid):
                found.append(pid)
    return found


def signal_session(leader: int, number: signal.Signals) -> list[int]:
    """Send a signal to all processes of the session, and return them."""
    hit = session(leader)
    for pid in hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return hit


def kill_session(leader: int) -> list[int]:
    """Kill all processes of the session, also those they fork meanwhile, and return them."""
    killed: dict[int, None] = {}
    while hit := signal_session(leader, signal.SIGKILL):
        killed |= dict.fromkeys(hit)
        time.sleep(0.01)
    return list(killed)


def every_pid() -> list[int]:
    """Return all processes of this machine, oldest first."""
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def parent(pid: int) -> int | None:
    """Return the pid of a process's parent; None if the process has ended."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def command_line(pid: int) -> str:
    """Return a process's command as one line; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def working_folder(pid: int) -> Path | None:
    """Return a process's working folder; None if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _die_with_parent() -> None:
    """Ask for SIGKILL when we end: a Celery worker without Redis would not end at SIGTERM."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    fields = _stat(pid)
    return not fields or fields[0] == "Z"


def _stat(pid: int) -> list[str]:
    """Return state, parent, …: what follows the name, which may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
