"""Micro-batches: which rows of ART's packed tensors share a forward pass.

Shapes: B rows of a micro-batch, T its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from art.loss import shift_tensor

_KEYS = ("tokens", "assistant_mask", "logprobs", "advantages", "weights", "group_ids")


@dataclass(frozen=True)
class MicroBatch:
    """Rows on the device, cut to their longest.

    `inputs` are what `art.loss.loss_fn` reads, each [B, T]; `predicts` [B, T] marks the positions
    whose *next* token is trained.
    """

    inputs: dict[str, torch.Tensor]
    predicts: torch.Tensor


def row_lengths(assistant_mask: torch.Tensor) -> list[int]:
    """Tokens of each row up to its last trained one; what follows is padding.

    `assistant_mask` is [rows, length]; a row without trained tokens counts 0.
    """
    positions = torch.arange(1, assistant_mask.shape[1] + 1)
    lengths: list[int] = (assistant_mask * positions).amax(dim=1).tolist()
    return lengths


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches of at most `max_tokens` padded tokens, or of one row.

    Rows of like length share a batch, so little is padded. The longest come first: where memory
    is short, that shows at once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return batches


def take(tensors: Any, rows: list[int], lengths: Sequence[int], device: torch.device) -> MicroBatch:
    """The rows of ART's packed tensors as a micro-batch."""
    longest = max(lengths[row] for row in rows)
    inputs = {key: tensors[key][rows, :longest].to(device) for key in _KEYS}
    return MicroBatch(inputs=inputs, predicts=shift_tensor(inputs["assistant_mask"], False))
