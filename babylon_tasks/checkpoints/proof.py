"""Reads the proof of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec

from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.records.proofs import PROOF, Proof


def read_proof(folder: Path) -> Proof | None:
    """Return the proof in a checkpoint's local folder; None for one from before there were proofs.

    Raises:
        CheckpointUnreadable: The file is damaged or cannot be read.
    """
    try:
        return msgspec.json.decode((folder / PROOF).read_bytes(), type=Proof)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointUnreadable(f"cannot read {folder / PROOF}: {error}") from error
