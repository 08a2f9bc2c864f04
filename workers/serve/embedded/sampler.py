"""Chooses the next token of each row of a batch.

Shapes: B rows, S rows that are drawn, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

GREEDY_BELOW = 1e-5  # a temperature lower than this is 0, as in vLLM


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row is drawn; its random numbers are its own, whoever else is in the batch."""

    temperature: float
    top_p: float
    random: random.Random
    top_logprobs: int = 0  # alternatives to report for each token


class Chosen(NamedTuple):
    """A token with its log-probability before temperature and top_p, and the likeliest ones."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def choose(logits_bv: torch.Tensor, samplings: Sequence[Sampling]) -> list[Chosen]:
    """Choose one token for each row."""
    logprobs_bv = torch.log_softmax(logits_bv.float(), dim=-1)
    tokens_b = logprobs_bv.argmax(dim=-1)
    drawn = [row for row, each in enumerate(samplings) if each.temperature >= GREEDY_BELOW]
    if drawn:
        tokens_b[drawn] = _draw(logprobs_bv[drawn], [samplings[row] for row in drawn])
    values_b = logprobs_bv.gather(1, tokens_b[:, None]).squeeze(1)
    most = max(each.top_logprobs for each in samplings)
    tops: list[list[tuple[int, float]]] = [[] for _ in samplings]
    if most:
        values, ids = logprobs_bv.topk(most, dim=-1)
        pairs = zip(ids.tolist(), values.tolist(), samplings, strict=True)
        tops = [[*zip(i, v, strict=True)][: each.top_logprobs] for i, v, each in pairs]
    return [*map(Chosen, tokens_b.tolist(), values_b.tolist(), tops)]


def _draw(logprobs_sv: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Draw by one random number a row, where the sum of the probabilities reaches it.

    A draw from the same number differs between batches only where rounding moves a border across
    it.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logprobs_sv.device)[:, None]

    temperatures = column([each.temperature for each in samplings])
    probabilities_sv = torch.softmax(logprobs_sv / temperatures, dim=-1)  # float64
    cut = [row for row, each in enumerate(samplings) if each.top_p < 1]
    if cut:
        some = probabilities_sv[cut]
        sorted_sv = some.sort(dim=-1, descending=True).values
        before_sv = sorted_sv.cumsum(dim=-1) - sorted_sv
        kept = (before_sv < column([samplings[row].top_p for row in cut])).sum(-1, keepdim=True)
        least = sorted_sv.gather(1, (kept - 1).clamp(min=0))
        probabilities_sv[cut] = some.where(some >= least, 0.0)
    sums_sv = probabilities_sv.cumsum(dim=-1)
    at = column([each.random.random() for each in samplings]) * sums_sv[:, -1:]
    last = logprobs_sv.shape[1] - 1
    return torch.searchsorted(sums_sv, at, right=True).squeeze(1).clamp(max=last)
