"""The embedded servers that `babylon up` runs in this folder, for the commands beside it."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

FILE = Path(".babylon/servers.env")


@contextlib.contextmanager
def announced(env: Mapping[str, str]) -> Iterator[None]:
    """Write these variables to `FILE`, for a shell and for `read`; remove it at the end.

    Only its owner can read it, since Redis' password is in it.
    """
    FILE.unlink(missing_ok=True)
    with open(FILE, "w", opener=_private) as file:
        file.write(f"# of process {os.getpid()}, started at {_started(os.getpid())}\n")
        file.writelines(f"{name}={shlex.quote(value)}\n" for name, value in env.items())
    try:
        yield
    finally:
        FILE.unlink(missing_ok=True)


def read() -> dict[str, str]:
    """Return the variables of the servers that run in this folder; without any, nothing."""
    try:
        first, *lines = FILE.read_text().splitlines()
        words = first.split()
        alive = _started(int(words[3].rstrip(","))) == words[-1]
        pairs = [shlex.split(line)[0].partition("=") for line in lines if line]
    except (OSError, ValueError, IndexError):
        return {}
    return {name: value for name, _, value in pairs} if alive else {}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def _started(pid: int) -> str:
    """Return when a process was started, so that another one with its number is told apart.

    Raises:
        OSError: There is no such process, or no /proc.
    """
    # After the name, which may hold anything but ends with the last parenthesis.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]  # clock ticks after the machine's start
