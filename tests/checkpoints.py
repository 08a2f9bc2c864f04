"""Checkpoints without torch: the files that a server of adapters reads, and a proof."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints.files import folder_of, save
from babylon_tasks.records.proofs import PROOF, Proof
from workers.serve.backend import Version

TOKENS = tuple(range(7, 108))
BASE = tuple(-2.0 - (n % 5) / 10 for n in range(100))


def proof_of(step: int) -> Proof:
    """Return a proof in which each step moves other tokens."""
    moved = tuple(v + (0.5 if n % 7 == step % 7 else 0.0) for n, v in enumerate(BASE))
    return Proof(TOKENS, moved, BASE)


def make_version(
    store: Path | str,
    step: int,
    *,
    lineage: str = "agent",
    token: int | None = None,
    rank: int = 8,
    proven: bool = True,
) -> Version:
    """Save a checkpoint of a step in the store, and return its version."""
    checkpoint = folder_of(str(store), lineage, step, token or 3 * step)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = {"r": rank, "base_model_name_or_path": "/models/base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(checkpoint.encode())
        if proven:
            (folder / PROOF).write_bytes(msgspec.json.encode(proof_of(step)))
        save(folder, checkpoint, "nonce")
    return Version(lineage, step, f"v1.0.{step}", "/models/base", checkpoint=checkpoint)
