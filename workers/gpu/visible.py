"""Which GPUs CUDA_VISIBLE_DEVICES shows, by the names that all processes share: UUIDs, MIG ids.

It is read as CUDA reads it: an entry that names no GPU, as -1 does, ends the list; one that comes
twice makes it empty; UUIDs and MIG ids may be cut short. Two things are our own. Numbers count as
`nvidia-smi` counts, whatever CUDA_DEVICE_ORDER says: CUDA puts the fastest first, and only it knows
which that is. And a GPU that is cut into MIG instances stands for all of them: CUDA would show a
process the first alone.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_SMI_SECONDS = 20.0
_GPU_LINE = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")
_MIG_LINE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


@dataclass
class Gpu:
    """A GPU of this machine, and the MIG instances into which it is cut, if any."""

    index: int
    uuid: str
    instances: list[str] = field(default_factory=list)

    @property
    def slots(self) -> list[str]:
        """The names under which a process can use it."""
        return self.instances or [self.uuid]


def visible_gpus() -> list[str]:
    """UUIDs and MIG ids of the GPUs that this process may use; empty without one.

    Where `nvidia-smi` cannot be asked, they are the names as CUDA_VISIBLE_DEVICES has them.
    """
    return shown(os.environ.get("CUDA_VISIBLE_DEVICES"), installed_gpus())


def shown(named: str | None, gpus: Sequence[Gpu] | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES=`named` shows of these GPUs; None: they are not known."""
    if named is None:
        return [slot for gpu in gpus or () for slot in gpu.slots]
    found: list[str] = []
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
        found += slots
    if len(set(found)) < len(found):
        log.warning("CUDA_VISIBLE_DEVICES=%s names a GPU twice: CUDA then shows none", named)
        return []
    return found


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


@functools.cache
def installed_gpus() -> list[Gpu] | None:
    """The GPUs that `nvidia-smi` lists; None where it is missing, fails or hangs.

    Asked once: pool processes inherit the answer that sized the pool.
    """
    try:
        process = subprocess.Popen(
            ["nvidia-smi", "-L"],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError:
        return None
    try:
        listed, _ = process.communicate(timeout=_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: one that hangs in the driver does not die
        log.warning("nvidia-smi does not answer within %g s", _SMI_SECONDS)
        return None
    if process.returncode != 0:
        reason = " ".join(listed.split())[:200]
        log.warning("nvidia-smi -L ends with %d: %s", process.returncode, reason)
        return None
    return _parse(listed)


def _parse(listed: str) -> list[Gpu]:
    gpus: list[Gpu] = []
    for line in listed.splitlines():
        if match := _GPU_LINE.match(line):
            gpus.append(Gpu(int(match[1]), match[2]))
        elif gpus and (match := _MIG_LINE.match(line)):
            gpus[-1].instances.append(match[1])
    return gpus
