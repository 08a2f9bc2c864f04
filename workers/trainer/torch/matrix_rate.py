"""How fast this device multiplies matrices: the yardstick of a step's MFU."""

from __future__ import annotations

import functools
import time

import torch

_SECONDS = 0.05  # of each of the three measurements
_SIZES = {"cuda": (8192, torch.bfloat16), "cpu": (1024, torch.float32)}


@functools.cache
def matrix_rate(device_type: str) -> float | None:
    """Operations a second in bfloat16 on CUDA, in float32 on the CPU; measured once a process.

    None where there is no memory left for it: no figure is worth a step.
    """
    size, dtype = _SIZES[device_type]
    try:
        matrix = torch.randn(size, size, device=device_type, dtype=dtype)
        product = torch.empty_like(matrix)

        def seconds(times: int) -> float:
            _finish(device_type)
            started = time.perf_counter()
            for _ in range(times):
                torch.mm(matrix, matrix, out=product)
            _finish(device_type)
            return time.perf_counter() - started

        seconds(1)  # the first one loads libraries
        times = max(1, int(_SECONDS / seconds(1)))
        best = min(seconds(times) for _ in range(3)) / times
    except RuntimeError:
        return None
    return 2 * size**3 / best


def _finish(device_type: str) -> None:
    if device_type == "cuda":
        torch.cuda.synchronize()
