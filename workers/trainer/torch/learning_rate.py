"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from babylon_tasks.records.steps import Hyperparameters


def default_rate(hidden_size: int) -> float:
    """Return the learning rate for a model of this hidden size, where none is set.

    The smaller the model, the larger: 5e-4 at a hidden size of 2000, by its root elsewhere. The
    form is that of tinker-cookbook (`hyperparam_utils.get_lr`), whose exponents are 0.08 for Qwen
    and 0.78 for Llama models; ours is between, and fits what docs/learning.md measured.
    """
    return 5e-4 * math.sqrt(2000 / hidden_size)


def learning_rate(wanted: Hyperparameters, hidden_size: int, updates_before: int) -> float:
    """Return the rate of the lineage's next update; it grows to the full one in `warmup_steps`.

    AdamW's first updates go the full rate in every direction, whatever the gradients' size: there
    is no history yet that would tell signal from noise.
    """
    full = wanted.learning_rate
    if full is None:
        full = default_rate(hidden_size)
    return full * min(1.0, (updates_before + 1) / max(1, wanted.warmup_steps))
