"""The sequences of a step, one after the other in flat arrays: nothing is padded, on no machine.

12,000 calls of which the longest has 4,000 tokens would be 50 million padded positions; what the
agents really saw is a fifth of that.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch


class Sequences:
    """Token ids of many sequences, of which the end of each is trained.

    An advantage and a weight belong to a whole sequence, so they are kept once, not per token.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._lengths = array("q")
        self._trained = array("q")
        self._advantages = array("d")
        self._weights = array("d")
        self._recorded_at = array("q")  # positions in _tokens, of which ...
        self._recorded = array("f")  # ... the recorded log-probabilities are known

    def __len__(self) -> int:
        return len(self._lengths)

    def add(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        advantage: float,
        weight: float,
        recorded: Sequence[float] = (),
    ) -> None:
        """Append one sequence: the prompt is context, the answer (never empty) is trained.

        `recorded` are log-probabilities of the answer's first tokens, by the policy that said them.
        """
        begin = len(self._tokens) + len(prompt)
        self._recorded_at.extend(range(begin, begin + len(recorded)))
        self._recorded.extend(recorded)
        self._tokens.extend(prompt)
        self._tokens.extend(answer)
        self._lengths.append(len(prompt) + len(answer))
        self._trained.append(len(answer))
        self._advantages.append(advantage)
        self._weights.append(weight)

    def part(self, begin: int, end: int) -> Sequences:
        """Return a copy of the sequences from number `begin` to before `end`."""
        first = sum(self._lengths[:begin])
        last = first + sum(self._lengths[begin:end])
        part = Sequences()
        part._tokens = self._tokens[first:last]
        for name in ("_lengths", "_trained", "_advantages", "_weights"):
            setattr(part, name, getattr(self, name)[begin:end])
        low, high = bisect_left(self._recorded_at, first), bisect_left(self._recorded_at, last)
        part._recorded_at = array("q", (at - first for at in self._recorded_at[low:high]))
        part._recorded = self._recorded[low:high]
        return part

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sequence."""
        return self._lengths

    @property
    def context_tokens(self) -> int:
        """All tokens of the sequences."""
        return len(self._tokens)

    @property
    def trainable_tokens(self) -> int:
        """Answer tokens, their end tokens included."""
        return sum(self._trained)

    def teach(self, advantage_balance: float) -> bool:
        """Whether any advantage is left when negative ones are scaled by 1 - advantage_balance."""
        return any(a > 0 or (a < 0 and advantage_balance < 1) for a in self._advantages)

    def packed(self, advantage_balance: float) -> dict[str, Any]:
        """ART's packed tensors, [1, all tokens]: one row that holds every sequence.

        As ART's packing does: weights have a mean of one over the trained tokens, negative
        advantages are multiplied by 1 - advantage_balance, and then advantages have a weighted
        mean magnitude of one.

        Raises:
            ValueError: There is no sequence with an advantage.
        """
        if not self.teach(advantage_balance):
            raise ValueError("no sequence has an advantage")
        trained = torch.tensor(self._trained)
        weights = torch.tensor(self._weights, dtype=torch.float64)
        advantages = torch.tensor(self._advantages, dtype=torch.float64)
        total = int(trained.sum())
        weights /= (weights * trained).sum() / total
        advantages[advantages < 0] *= 1 - advantage_balance
        advantages /= (advantages.abs() * weights * trained).sum() / total

        logprobs = torch.tensor(math.nan).expand(1, len(self._tokens))  # ART's "not recorded"
        if self._recorded:
            logprobs = logprobs.clone()
            at = torch.frombuffer(self._recorded_at, dtype=torch.int64)
            logprobs[0, at] = torch.frombuffer(self._recorded, dtype=torch.float32)
        number = self._per_token(torch.arange(len(self)))
        unweighted = self.unweighted()
        mask = unweighted["assistant_mask"]
        return {
            **unweighted,
            "group_ids": number,
            "parent_ids": number,
            "logprobs": logprobs,
            "advantages": self._per_token(advantages.float()) * mask,
            "weights": self._per_token(weights.float()) * mask,
            "pixel_values": [None],
            "image_grid_thw": [None],
        }

    def unweighted(self) -> dict[str, torch.Tensor]:
        """ART's packed tensors without what the loss alone reads; there is at least one sequence.

        They are tokens, input_pos and assistant_mask, [1, all tokens] each.
        """
        lengths, trained = torch.tensor(self._lengths), torch.tensor(self._trained)
        starts = lengths.cumsum(0) - lengths
        position = torch.arange(len(self._tokens))[None] - self._per_token(starts)
        return {
            "tokens": torch.frombuffer(self._tokens, dtype=torch.int32).long()[None],
            "input_pos": position,
            "assistant_mask": position >= self._per_token(lengths - trained),
        }

    def _per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Return a sequence's value at each of its tokens, [1, all tokens]."""
        return values.repeat_interleave(torch.tensor(self._lengths))[None]
