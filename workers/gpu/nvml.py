"""Lists this machine's GPUs as NVIDIA's driver knows them: `python -m workers.gpu.nvml`.

The driver is asked in a process of its own: a broken one may hang whoever asks, and what it leaves
in a process does not survive the fork of a pool.
"""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)

_ASK_SECONDS = 20.0


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, and the MIG instances into which it is cut, if any.

    Args:
        index: Its number, as `nvidia-smi` counts: by PCI bus.
        uuid: `GPU-…`.
        name: What NVIDIA sells it as.
        memory_bytes: All of its memory; None where it has none of its own.
        instances: `MIG-…`, in the driver's order.
        memory_used_bytes: Of it, by all processes, when the driver was asked.
    """

    index: int
    uuid: str
    name: str = ""
    memory_bytes: int | None = None
    instances: Sequence[str] = ()
    memory_used_bytes: int | None = None

    @property
    def slots(self) -> list[str]:
        """The names under which a process can use it."""
        return list(self.instances) or [self.uuid]

    def describe(self) -> str:
        """Its name and memory, for people."""
        if self.memory_bytes is None:
            return self.name
        return f"{self.name}, {self.memory_bytes // 2**20} MiB"


@functools.cache
def installed_gpus() -> list[Gpu] | None:
    """List the driver's GPUs; None where there is no driver, or it fails or hangs.

    Asked once: pool processes inherit the answer that sized the pool.
    """
    return ask()


def ask() -> list[Gpu] | None:
    """List the driver's GPUs as they are now; None as for `installed_gpus`."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.gpu.nvml"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError as error:  # no memory or process for it now
        log.warning("NVIDIA's driver is not asked: %s", error)
        return None
    try:
        answer, _ = process.communicate(timeout=_ASK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: one that hangs in the driver does not die
        log.warning("NVIDIA's driver does not answer within %g s", _ASK_SECONDS)
        return None
    try:
        listed = json.loads(answer)
    except ValueError:
        log.warning("the process that asked NVIDIA's driver ended with %d", process.returncode)
        return None
    if "error" in listed:
        log.warning("NVIDIA's driver cannot list the GPUs: %s", listed["error"])
    return [Gpu(**gpu) for gpu in listed["gpus"]] if "gpus" in listed else None


def descriptions() -> list[str] | None:
    """Describe each of the GPUs for people; None where the driver does not list them."""
    gpus = installed_gpus()
    return None if gpus is None else [gpu.describe() for gpu in gpus]


def main() -> None:
    """Print `{"gpus": […]}`, `{"error": "…"}` where the driver fails, `{}` where there is none."""
    try:
        import pynvml as nvml
    except ImportError:
        answer: dict[str, Any] = {}
    else:
        try:
            answer = {"gpus": [asdict(gpu) for gpu in _listed(nvml)]}
        except nvml.NVMLError_LibraryNotFound:
            answer = {}
        except nvml.NVMLError as error:
            answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))


def _listed(nvml: Any) -> list[Gpu]:
    """List the GPUs, with their MIG instances.

    Raises:
        NVMLError: The driver is missing, or does not answer.
    """
    nvml.nvmlInit()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpus.append(
            Gpu(
                index,
                nvml.nvmlDeviceGetUUID(handle),
                nvml.nvmlDeviceGetName(handle),
                _memory_bytes(nvml, handle, "total"),
                _instances(nvml, handle),
                _memory_bytes(nvml, handle, "used"),
            )
        )
    return gpus


def _memory_bytes(nvml: Any, handle: Any, which: str) -> int | None:
    try:
        return int(getattr(nvml.nvmlDeviceGetMemoryInfo(handle), which))
    except nvml.NVMLError:  # it shares the machine's, or the driver does not say
        return None


def _instances(nvml: Any, handle: Any) -> list[str]:
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return []  # no GPU of that kind, or a driver from before
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return []
    uuids = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:  # numbers may have gaps
            continue
        uuids.append(nvml.nvmlDeviceGetUUID(instance))
    return uuids


if __name__ == "__main__":
    main()
