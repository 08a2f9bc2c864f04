"""How far the weights of two adapters differ, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from babylon_tasks.checkpoints.export import ADAPTER_FILES
from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.text import first_line


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """The difference of two adapters; all is 0 if they are equal.

    `differing` of the `tensors` are not equal. `largest` is the largest difference of two weights,
    `largest_share` the largest one as a share of the largest weight of its tensor, which `where`
    names.
    """

    tensors: int
    differing: int
    largest: float
    largest_share: float
    where: str | None


def compare_adapters(then: Path, now: Path) -> WeightDifference:
    """Compare two folders that hold an adapter each.

    Raises:
        CheckpointUnreadable: A file cannot be read, or they have not the same tensors.
    """
    weights = ADAPTER_FILES[0]
    tensors = differing = 0
    largest = largest_share = 0.0
    where = None
    try:
        with safe_open(then / weights, "pt") as old, safe_open(now / weights, "pt") as new:
            if sorted(old.keys()) != sorted(new.keys()):
                raise CheckpointUnreadable(f"{then} and {now} have not the same layers")
            for name in sorted(old.keys()):
                tensors += 1
                a, b = old.get_tensor(name), new.get_tensor(name)
                if torch.equal(a, b):
                    continue
                differing += 1
                absolute, share = _compare(a.double(), b.double())
                largest = max(largest, absolute)
                if share > largest_share:
                    largest_share, where = share, name
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointUnreadable(
            f"cannot compare the adapters of {then} and {now}: {first_line(error)}"
        ) from error
    return WeightDifference(tensors, differing, largest, largest_share, where)


def _compare(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference of two tensors that are not equal, and its share.

    Raises:
        RuntimeError: The shapes differ.
    """
    absolute = float((a - b).abs().max())
    return absolute, absolute / float(torch.maximum(a.abs().max(), b.abs().max()))
