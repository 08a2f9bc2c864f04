"""The flowerconfig.py of whoever runs Flower, read beside ours."""

from __future__ import annotations

import symtable
from pathlib import Path
from typing import Any

from flower.options import DEFAULT_CONFIG_FILE

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line


def read_theirs(options: Any, ours: Path) -> list[str]:
    """Read the file that `options.conf` names, else the one in the working folder, if it is there.

    Return the names that it assigns.

    Raises:
        UserError: It is not there, or Python or Flower cannot read it.
    """
    of_the_folder = Path(DEFAULT_CONFIG_FILE)
    path = Path(options.conf or of_the_folder)
    if _is(path, ours):
        path = of_the_folder
    if path == of_the_folder and (not path.exists() or _is(path, ours)):
        return []
    try:
        options.parse_config_file(str(path), final=False)
        return _assigned(path.read_text())
    except OSError as error:
        raise UserError(
            f"FLOWER_CONF (--conf): {path} cannot be read: {error.strerror or error}"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever that file raises
        why = one_line(f"{type(error).__name__}: {error}", 300)
        raise UserError(f"Flower's settings in {path} cannot be used: {why}") from None


def _is(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def _assigned(text: str) -> list[str]:
    names = symtable.symtable(text, DEFAULT_CONFIG_FILE, "exec").get_symbols()
    return [name.get_name() for name in names if name.is_assigned() and not name.is_namespace()]
