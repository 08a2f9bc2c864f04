"""Flower's list of tasks over a restart: kept in a file, or begun anew."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from babylon_tasks.errors import UserError

log = logging.getLogger(__name__)

# Python's dbm modules add these.
_ENDINGS = ("", ".db", ".dat", ".dir", ".bak", ".tmp")


def require_private(db: str) -> None:
    """Refuse `--persistent` where somebody else could write its file.

    The file is a pickle: who writes it runs what they like when Flower reads it.

    Raises:
        UserError: The file or its folder is another user's, or others may write it.
    """
    path = Path(db).absolute()
    if not path.parent.is_dir():
        raise UserError(f"FLOWER_DB (--db): there is no folder {path.parent}: make it, chmod 700")
    for each in (path.parent, *(path.with_name(path.name + ending) for ending in _ENDINGS)):
        if each.is_symlink() and each != path.parent:
            raise UserError(f"FLOWER_PERSISTENT: {each} is a symbolic link: name the file itself")
        if not each.exists():
            continue
        found = each.stat()
        if found.st_uid != os.geteuid():
            raise UserError(
                f"FLOWER_PERSISTENT: {each} belongs to another user, who could have Flower run "
                "anything: name a file in a folder of this user's own with FLOWER_DB"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(
                f"FLOWER_PERSISTENT: others may write {each}, and so have Flower run anything: "
                f"chmod go-w {each}"
            )


def say_that_it_begins_anew() -> None:
    """Log what a restart of Flower forgets, and what keeps it."""
    log.info(
        "Flower's list of tasks begins anew at each start; the history is in Postgres: "
        "babylon windows list, babylon models list"
    )
