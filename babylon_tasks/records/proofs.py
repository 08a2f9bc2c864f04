"""The proof of a version: what it makes of a fixed text, so that a server can be asked the same.

The trainer writes log-probabilities of the text's tokens by the step and by its base model. A
server that answers for the version gives its own of both. What the step changed must be found
there: servers have answered for weeks with the base model under a version's name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import msgspec

from babylon_tasks.records.steps import LEAST_LOGPROB

PROOF = "proof.json"  # in the folder of a checkpoint
MOST_TOKENS = 256

SYSTEM = "You are a trading agent on a prediction market. Answer with one action and its reason."
USER = (
    "Balance: $1,240.50. Open position: 12 shares of YES at 0.43.\n"
    "Market 17: Will the new chip ship before June? The price of YES rose from 0.43 to 0.58."
)
ANSWER = (
    '{"action": "sell_shares", "marketId": "17", "amount": 12}\n'
    "The price rose by a third and the news is old, so I take the profit before others do."
)

# Largest mean difference between the base model there and here, in nats a token. Between float32 on
# a CPU and vLLM's CPU build in bfloat16 it is 0.045 (SmolLM2-135M, 139 tokens) and 0.019 (the
# demo's model, 186 tokens).
_SAME_BASE = 0.25

# Rounding moves the difference of two policies of a server, too: 0.066 to 0.097 nats a token with
# SmolLM2 and 0.014 to 0.023 with the demo's, which is 0.6 to 1.7 times the base model's deviation.
_NOISE_OF_BASE = 1.5
_LEAST_NOISE = 0.002  # of the same arithmetic in another order

# bfloat16 takes a part of a small step away: of one that moved SmolLM2 by 0.127 nats a token, 62 %
# was found; of one by 0.51, 98 %.
_LEAST_SHARE = 0.3
_SURE = 0.1  # standard error of the share, up to which the share decides
_NEAR = 0.5  # part of the step's own change that may be missed, besides the noise


class Proof(msgspec.Struct, frozen=True):
    """Tokens of the fixed text, and their log-probabilities at temperature 1, in nats.

    There is one value for each token but the first. The trainer computes them: in float32 on a CPU.

    Raises:
        ValueError: It has no tokens, or not as many values.
    """

    token_ids: tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**31)], ...]
    step: tuple[float, ...]
    base: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.token_ids) - 1 == len(self.step) == len(self.base) > 0:
            raise ValueError("one log-probability for each token but the first")
        if not all(LEAST_LOGPROB <= value <= 0 for value in (*self.step, *self.base)):
            raise ValueError("log-probabilities are finite and at most 0")


def doubt(proof: Proof, step: Sequence[float], base: Sequence[float]) -> str | None:
    """Say why a server does not answer as the version; None if it does.

    Of a step so small that rounding hides it, nobody can tell: it passes where the server answers
    like the base model or like the step.

    Args:
        proof: Of the version.
        step: The server's log-probabilities of the same tokens by what it has under the name.
        base: Those by the server's base model.
    """
    reason = doubt_of_base(proof, base)
    if reason is not None:
        return reason
    if not _whole(proof, step):
        return "it gives no finite log-probability for each token"
    change = _difference(proof.step, proof.base)
    served = _difference(step, base)
    length, noise = math.hypot(*change), _noise(proof, base)
    # The part of the step's change that is found at the server: 1 is itself, 0 the base model.
    share = sum(map(operator.mul, served, change)) / length**2 if length else 1.0
    found = f"{share:.0%} of the step's change is found"
    # The share's standard error is the noise of one token by the length of the change.
    missing = _SURE * length >= noise and share < _LEAST_SHARE
    all_noise = 3 * noise * math.sqrt(len(change))
    if missing and math.hypot(*served) <= all_noise + _LEAST_SHARE * length:
        return f"it answers like the base model: {found}"
    if missing or math.dist(served, change) > all_noise + _NEAR * length:
        return f"it answers like another version: {found}"
    return None


def doubt_of_base(proof: Proof, base: Sequence[float]) -> str | None:
    """Say why a server's base model is not the one of the proof; None if it is."""
    if not _whole(proof, base):
        return "its base model gives no finite log-probability for each token"
    apart = fmean(map(abs, _difference(base, proof.base)))
    if apart <= _SAME_BASE:
        return None
    return f"its base model is another: log-probabilities differ by {apart:.2g} nats a token"


def _noise(proof: Proof, base: Sequence[float]) -> float:
    """Return the deviation that rounding gives to a difference of two policies, by the base's."""
    deviation = math.dist(base, proof.base) / math.sqrt(len(proof.base))
    return max(_LEAST_NOISE, _NOISE_OF_BASE * deviation)


def _whole(proof: Proof, values: Sequence[float]) -> bool:
    return len(values) == len(proof.base) and all(map(math.isfinite, values))


def _difference(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [this - that for this, that in zip(these, those, strict=True)]
