"""The manifest of a checkpoint: its files, and what proves that they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from babylon_tasks.errors import CheckpointUnreadable

MANIFEST = "manifest.json"
CHUNK_BYTES = 8 << 20  # also the size of an S3 part, so at least 5 MiB


class Manifest(msgspec.Struct):
    """File name → size in bytes, and → SHA-256, which those of release 0.1.0 do not have."""

    files: dict[str, int]
    sha256: dict[str, str] = {}


def size_of(url: str) -> int | None:
    """Return the bytes of a checkpoint's files; None if they are not in a folder of this machine.

    Nothing is fetched, and whether the files are whole is not looked at.
    """
    try:
        manifest = msgspec.json.decode((Path(url) / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return sum(manifest.files.values())


def copy(read: IO[bytes], to: IO[bytes], on_chunk: Callable[[], None]) -> str:
    """Copy to the end; return the SHA-256 of what was read."""
    digest = hashlib.sha256()
    while chunk := read.read(CHUNK_BYTES):
        digest.update(chunk)
        to.write(chunk)
        on_chunk()
    return digest.hexdigest()


def sha256_of(file: Path, on_chunk: Callable[[], None]) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as read:
        while chunk := read.read(CHUNK_BYTES):
            digest.update(chunk)
            on_chunk()
    return digest.hexdigest()


def require_sizes(folder: Path, manifest: Manifest, url: str) -> None:
    """Require that every file has its size.

    Raises:
        CheckpointUnreadable: One was cut short.
        OSError: One is missing.
    """
    for name, size in manifest.files.items():
        if (folder / name).stat().st_size != size:
            raise CheckpointUnreadable(f"checkpoint {url} is incomplete: {name} was cut short")


def require_content(name: str, sha256: str, manifest: Manifest, url: str) -> None:
    """Require that a file is the one that was saved, as far as the manifest knows it.

    Raises:
        CheckpointUnreadable: It is not.
    """
    if manifest.sha256.get(name, sha256) != sha256:
        raise CheckpointUnreadable(
            f"checkpoint {url} is damaged: {name} is not what was saved (by its SHA-256)"
        )
