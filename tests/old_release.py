"""The code of release 0.1.0, as it is in git, for tests of an upgrade."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_COMMIT = "33edcb2d2a10199ebed4fa58a38e88600fbdd673"  # the last one before migration 011


def extract_old_release(folder: Path, *paths: str) -> None:
    """Write the packages, the migrations and these paths of release 0.1.0 into the folder."""
    made = subprocess.run(
        ["git", "-C", str(_ROOT), "archive", _COMMIT, "babylon_tasks", "workers", "migrations",
         *paths],
        capture_output=True,
        check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"this checkout does not have commit {_COMMIT[:7]}: `git fetch --unshallow`")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
