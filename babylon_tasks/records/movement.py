"""How far a step moved the policy, and when that is too little to matter."""

from __future__ import annotations

from dataclasses import dataclass

# Nats by which a step at least changes the log-probability of an answer, in the mean. At a pace
# below, a month of hourly steps (720) would not double the odds of an answer: ln 2 / 720 = 0.00096.
LEAST_POLICY_CHANGE = 0.001

STILL_STEPS = 10  # in a row are no accident


@dataclass(frozen=True, slots=True)
class Movement:
    """What a committed step says about how it moved the policy; None where it does not say.

    `policy_change` is in nats an answer. `kl` is the mean of its log-probabilities a token less
    those of the KL penalty's reference; `step_share` is how much of the step was taken, 0 to 1.
    """

    step: int
    policy_change: float | None
    kl: float | None
    learning_rate: float | None
    step_share: float | None = None

    @property
    def stands_still(self) -> bool:
        """Tell whether the step moved too little; one that does not say (an older one) did not."""
        return stands_still(self.policy_change)


def stands_still(policy_change: float | None) -> bool:
    """Tell whether this change of the policy is too small to matter; None: it is not known."""
    return policy_change is not None and policy_change < LEAST_POLICY_CHANGE
