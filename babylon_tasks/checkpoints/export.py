"""Exports a step's weights as a plain PEFT adapter, which needs no code of ours."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from babylon_tasks.errors import UserError

# The files of a checkpoint that PEFT and vLLM read.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
REMOTE_FILE = "remote.json"  # in a checkpoint whose weights are at W&B


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write into; it becomes `target`, or is removed if the block raises.

    Raises:
        UserError: The target is not empty, or cannot be written (disk full, no permission).
    """
    target = target.resolve()
    draft = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{target} exists and is not an empty folder: name another")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        try:
            yield draft
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        file = error.filename2 or error.filename  # of a copy, its target
        named = f" ({file})" if file else ""
        raise UserError(f"cannot export to {target}: {error.strerror or error}{named}") from error


def require_adapter(checkpoint: Path, name: str) -> None:
    """Refuse a step without weights to export; `name` is its name in the message.

    Raises:
        UserError: The weights are at W&B, or there are none.
    """
    if (checkpoint / REMOTE_FILE).exists():
        raise UserError(f"{name} was trained by W&B and its weights are there: nothing to export")
    if not all((checkpoint / file).is_file() for file in ADAPTER_FILES):
        raise UserError(f"{name} has no weights to export: was it made with TRAINER=noop?")


def copy_adapter(checkpoint: Path, folder: Path) -> None:
    """Copy the plain PEFT adapter, without optimizer state and our own files.

    Raises:
        OSError: A file cannot be read or written.
    """
    for file in ADAPTER_FILES:
        shutil.copyfile(checkpoint / file, folder / file)
