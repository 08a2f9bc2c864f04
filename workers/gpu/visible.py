"""Which GPUs CUDA_VISIBLE_DEVICES shows, by the names that all processes share: UUIDs, MIG ids.

The list is read as CUDA reads it. An entry that names no GPU, as -1 does, ends the list; one that
comes twice makes it empty; UUIDs and MIG ids may be cut short. Two rules are our own. Numbers count
as `nvidia-smi` counts, by PCI bus, whatever CUDA_DEVICE_ORDER says: CUDA puts the fastest GPU
first, and only CUDA knows which that is. And a GPU that is cut into MIG instances stands for all of
them: CUDA would show a process only the first.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from workers.gpu.nvml import Gpu, installed_gpus

log = logging.getLogger(__name__)


def visible_gpus() -> list[str]:
    """List the UUIDs and MIG ids of the GPUs that this process may use; empty without one.

    Where NVIDIA's driver cannot be asked, they are the names as CUDA_VISIBLE_DEVICES has them.
    """
    return shown(os.environ.get("CUDA_VISIBLE_DEVICES"), installed_gpus())


def shown(named: str | None, gpus: Sequence[Gpu] | None) -> list[str]:
    """List what CUDA_VISIBLE_DEVICES=`named` shows of these GPUs; None: they are not known."""
    if named is None:
        return [slot for gpu in gpus or () for slot in gpu.slots]
    names: list[str] = []
    for entry in named.split(",") if named.strip() else ():
        slots = _slots_of(entry.strip(), gpus)
        if not slots:
            if entry.strip() != "-1":
                log.warning(
                    "CUDA_VISIBLE_DEVICES=%s: %r names no GPU (see nvidia-smi -L), so it and what "
                    "follows are not used",
                    named,
                    entry.strip(),
                )
            break
        names += slots
    if len(set(names)) < len(names):
        log.warning("CUDA_VISIBLE_DEVICES=%s names a GPU twice: CUDA then shows none", named)
        return []
    return names


def _slots_of(entry: str, gpus: Sequence[Gpu] | None) -> list[str]:
    if gpus is None:
        return [entry] if re.fullmatch(r"\d+|GPU-.+|MIG-.+", entry) else []
    if entry.isdecimal():
        return next((gpu.slots for gpu in gpus if gpu.index == int(entry)), [])
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    matching = [gpu.slots for gpu in gpus if gpu.uuid.startswith(entry)]
    matching += [[mig] for gpu in gpus for mig in gpu.instances if mig.startswith(entry)]
    return matching[0] if len(matching) == 1 else []
