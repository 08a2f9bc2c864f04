"""Micro-batches: which of a step's sequences share a forward pass.

Shapes: S tokens of the whole step, B rows of a micro-batch, T its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from art.loss import shift_tensor
from torch.nn.utils.rnn import pad_sequence

# What ART's loss reads, and what stands in positions that hold no token.
_PADDING = {
    "tokens": 0,
    "assistant_mask": 0,
    "logprobs": math.nan,
    "advantages": 0.0,
    "weights": 0.0,
    "group_ids": -1,
    # Not ART's: log-probabilities by other policies, see `policies`.
    "recorded": math.nan,
    "start": 0.0,
    "reference": 0.0,
}
# A row shorter than this share of the longest goes into another batch: attention over padding
# costs more than one batch more.
_LIKE_LENGTH = 0.75


@dataclass(frozen=True)
class StepTensors:
    """ART's packed tensors, one row of all tokens, and where each sequence begins.

    An evaluation has only tokens and assistant_mask of them. `policies` adds some: `start` and
    `reference`, the log-probabilities of the trained tokens by the policy at the step's start and
    by the KL penalty's reference, and `recorded`, where `logprobs` has more than was recorded.
    """

    tensors: dict[str, torch.Tensor]  # [S] each
    starts: Sequence[int]
    lengths: Sequence[int]
    trained_tokens: int  # those that take part in the loss

    @classmethod
    def from_packed(cls, packed: Any) -> StepTensors:
        """From ART's tensors [1, S], on disk or in memory: a sequence begins at position 0."""
        tensors = {key: packed[key][0] for key in _PADDING if key in packed}
        (starts,) = torch.nonzero(packed["input_pos"][0] == 0, as_tuple=True)
        ends = torch.cat([starts[1:], torch.tensor([tensors["tokens"].numel()])])
        return cls(
            tensors=tensors,
            starts=starts.tolist(),
            lengths=(ends - starts).tolist(),
            trained_tokens=int(tensors["assistant_mask"].sum()),
        )

    def trained_at(self, rows: Sequence[int]) -> torch.Tensor:
        """Return where in `tensors` the trained tokens of these sequences are, in their order."""
        mask = self.tensors["assistant_mask"]
        spans = [(self.starts[row] + 1, self.starts[row] + self.lengths[row]) for row in rows]
        return torch.cat([mask[begin:end].nonzero().squeeze(1) + begin for begin, end in spans])

    def tokens_in(self, rows: Sequence[int]) -> int:
        """Count the tokens of these sequences."""
        return sum(self.lengths[row] for row in rows)

    def take(self, rows: list[int], device: torch.device) -> MicroBatch:
        """Return the sequences of these numbers as a micro-batch, padded on the right."""
        inputs = {}
        for key, values in self.tensors.items():
            parts = [values[self.starts[r] : self.starts[r] + self.lengths[r]] for r in rows]
            inputs[key] = pad_sequence(parts, batch_first=True, padding_value=_PADDING[key])
        predicts = shift_tensor(inputs["assistant_mask"], False)
        return MicroBatch({k: to_device(v, device) for k, v in inputs.items()}, predicts)


@dataclass(frozen=True)
class MicroBatch:
    """Rows on the device, padded to their longest.

    `inputs` are what `art.loss.loss_fn` reads, each [B, T]; `predicts` [B, T], on the CPU, marks
    the positions whose *next* token is trained.
    """

    inputs: dict[str, torch.Tensor]
    predicts: torch.Tensor

    @property
    def recorded_n(self) -> torch.Tensor:
        """The recorded log-probability of each trained token, NaN where there is none; [N]."""
        return self.of_trained("recorded" if "recorded" in self.inputs else "logprobs")

    def of_trained(self, name: str) -> torch.Tensor:
        """Return the input of this name of each trained token, in row order; [N]."""
        shifted_bt: torch.Tensor = shift_tensor(self.inputs[name], math.nan)
        return shifted_bt.flatten().index_select(0, self._positions_n(shifted_bt.device))

    def spread(self, values_n: torch.Tensor) -> torch.Tensor:
        """Return a value a trained token, in row order, if `predicts` is true, else 0: [B, T]."""
        positions_n = self._positions_n(values_n.device)
        zeros = values_n.new_zeros(self.predicts.numel())
        return zeros.index_copy(0, positions_n, values_n).view(self.predicts.shape)

    def _positions_n(self, device: torch.device) -> torch.Tensor:
        return to_device(self.predicts.flatten().nonzero().squeeze(1), device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for what runs there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches of at most `max_tokens` padded tokens, or of one row.

    Rows of like length share a batch, so little is padded. The longest come first: where memory
    is short, that shows at once.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fits = batches and (len(batches[-1]) + 1) * longest <= max_tokens
        if fits and lengths[row] >= _LIKE_LENGTH * longest:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return batches
