"""Stands in for nvidia-ml-py where tests put this folder on PYTHONPATH: the GPUs of FAKE_GPUS.

FAKE_GPUS is JSON: a list of [uuid, name, MiB, [MIG uuids, null for a gap]], {"error": "…"} for a
driver that fails, or {"seconds": …} for one that hangs. Without it there is no driver.
"""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace
from typing import Any

NVML_DEVICE_MIG_ENABLE = 1
_fake = json.loads(os.environ.get("FAKE_GPUS", "null"))


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


def nvmlInit() -> None:
    if _fake is None:
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    if isinstance(_fake, dict):
        time.sleep(_fake.get("seconds", 0))
        raise NVMLError_DriverNotLoaded(_fake.get("error", ""))


def nvmlDeviceGetCount() -> int:
    return len(_fake)


def nvmlDeviceGetHandleByIndex(index: int) -> list[Any]:
    handle: list[Any] = _fake[index]
    return handle


def nvmlDeviceGetUUID(handle: list[Any]) -> str:
    return str(handle[0])


def nvmlDeviceGetName(handle: list[Any]) -> str:
    return str(handle[1])


def nvmlDeviceGetMemoryInfo(handle: list[Any]) -> SimpleNamespace:
    if handle[2] is None:
        raise NVMLError_NotSupported("Not Supported")
    return SimpleNamespace(total=handle[2] * 2**20, used=handle[2] * 2**19)


def nvmlDeviceGetMigMode(handle: list[Any]) -> list[int]:
    if handle[3] is None:
        raise NVMLError_NotSupported("Not Supported")
    return [1, 1] if handle[3] else [0, 0]


def nvmlDeviceGetMaxMigDeviceCount(handle: list[Any]) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: list[Any], number: int) -> list[Any]:
    if number >= len(handle[3]) or handle[3][number] is None:
        raise NVMLError_NotFound("Not Found")
    return [handle[3][number]]
