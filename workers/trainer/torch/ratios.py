"""How far the model is from the policy that answered, where that policy's logprobs were recorded.

Shapes: N trained tokens of a micro-batch.
"""

from __future__ import annotations

import math

import torch


class Ratios:
    """Collects both sides of a step's tokens, and makes metrics of them.

    Args:
        cap: The largest ratio that the loss lets through.
    """

    def __init__(self, cap: float) -> None:
        self._log_cap = math.log(cap)
        self._old: list[torch.Tensor] = []
        self._new: list[torch.Tensor] = []

    def add(self, old_n: torch.Tensor, new_n: torch.Tensor) -> None:
        """Log-probabilities of a micro-batch: recorded ones (NaN: none), and the model's."""
        self._old.append(old_n)  # sorted out at the end: here it would wait for the GPU
        self._new.append(new_n)

    def extend(self, other: Ratios) -> None:
        """Add what another has collected, and free the GPU of it."""
        self._old.append(torch.cat(other._old).cpu())
        self._new.append(torch.cat(other._new).cpu())

    def metrics(self, trained_tokens: int) -> dict[str, float]:
        """Of the tokens with recorded logprobs; with none of those only their share, 0.

        `ratio_mean` is of the ratios (model over recorded) as clipped by the loss, `ratio_clipped`
        the share that is; `kl_recorded` is the mean of recorded less model, the plain estimate of
        KL(recorded || model); `probs_corr` is ART's, over the whole step, and may not be finite.
        """
        old = torch.cat(self._old).cpu().double() if self._old else torch.empty(0)
        new = torch.cat(self._new).cpu().double() if self._new else torch.empty(0)
        recorded = ~old.isnan()
        old, new = old[recorded], new[recorded]
        share = {"logprobs_share": len(old) / trained_tokens}
        if not len(old):
            return share
        logs = new - old
        probabilities = torch.stack([old.exp(), new.exp()])
        corr = float(torch.corrcoef(probabilities)[0, 1]) if len(old) > 1 else math.nan
        return {
            **share,
            # By their logarithms: vLLM has -9999 for what it could not say, an infinite ratio.
            "ratio_mean": float(logs.clamp(max=self._log_cap).exp().mean()),
            "ratio_clipped": float((logs > self._log_cap).double().mean()),
            "kl_recorded": float(-logs.mean()),
            "probs_corr": corr,
        }
