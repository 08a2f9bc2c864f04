"""Tells a folder's model from another one that lies, or lay, under the same path.

A fine-tune is noticed since it moves nearly all weights: a look at each 16 MB of a weight file sees
each large matrix. To hash everything would take a minute for 30 GB; this reads 120 MB of them. What
changes a few rows of one matrix may be missed. Names, sizes and contents count, and no times: a
copy on another node is the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Configuration, tokenizer, chat template, weights. What else lies there changes no step.
_SUFFIXES = {".json", ".jinja", ".model", ".safetensors", ".bin"}
_NAMES = {"merges.txt", "vocab.txt"}

_STRIDE = 2**24  # bytes; a matrix of 4096 x 4096 in bfloat16 has 2**25
_BLOCK = 2**16  # bytes read at each stride; a file of at most one stride is read whole


def fingerprint(folder: Path) -> str:
    """Return `files:` and 40 hexadecimal digits.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in _SUFFIXES or path.name in _NAMES):
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb", buffering=0) as file:
                for part in _parts(file, size):
                    digest.update(part)
    return f"files:{digest.hexdigest()[:40]}"


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= _STRIDE:
        yield file.read()
        return
    for start in (*range(0, size, _STRIDE), size - _BLOCK):
        file.seek(start)
        yield file.read(_BLOCK)
