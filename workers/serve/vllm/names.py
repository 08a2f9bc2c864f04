"""The name of a version's adapter in vLLM: one for its weights, for ever.

vLLM's prefix cache knows an adapter by its name alone: other weights under a name that was used
before would be answered from the cache of the old ones. So the name has the weights' hash.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints.files import open_local
from babylon_tasks.checkpoints.manifest import MANIFEST, Manifest, sha256_of
from babylon_tasks.checkpoints.proof import read_proof
from babylon_tasks.errors import CheckpointUnreadable, UserError
from babylon_tasks.records.proofs import Proof
from workers.serve.backend import CannotServe, Version

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Adapter(msgspec.Struct, frozen=True):
    """The files of a version on this machine, its name in vLLM, and its proof if it has one.

    `copied`: the folder is a copy of a remote one, which is deleted when it was not used for long.
    """

    name: str
    folder: Path
    proof: Proof | None
    copied: bool

    def keep(self) -> bool:
        """Tell whether its files are there, and have a copy kept.

        A whole store that is away, unmounted say, takes no version away: it comes back. The folder
        of a lineage stays where one of its versions is removed.
        """
        try:
            if self.copied:
                os.utime(self.folder)
            return (self.folder / _CONFIG).is_file() or not self.folder.parent.is_dir()
        except FileNotFoundError:
            return False
        except OSError:  # it cannot be read just now
            return True


def open_adapter(version: Version) -> Adapter:
    """Open a version's checkpoint; it is fetched once if it is remote, and checked. It blocks.

    Raises:
        CannotServe: It cannot be read, or has no adapter.
    """
    assert version.checkpoint is not None
    try:
        folder = open_local(version.checkpoint)
        weights = folder / _WEIGHTS
        if not weights.is_file():
            raise CannotServe(f"{version.name} has no weights: was it made with TRAINER=noop?")
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        sha256 = manifest.sha256.get(_WEIGHTS) or sha256_of(weights, lambda: None)
        proof = read_proof(folder)
    except (CheckpointUnreadable, UserError) as error:
        raise CannotServe(str(error)) from error
    except (OSError, msgspec.DecodeError) as error:
        raise CannotServe(f"cannot read {version.checkpoint}: {error}") from error
    name = f"{version.lineage}/{version.step}-{sha256[:16]}"
    return Adapter(name, folder, proof, copied="://" in version.checkpoint)
