"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from babylon_tasks.records.steps import Hyperparameters


def default_rate(hidden_size: int) -> float:
    """Return the learning rate for a model of this hidden size, where none is set.

    The smaller the model, the larger: tinker-cookbook's formula for LoRA of Qwen models
    (`hyperparam_utils.get_lr`), 5e-4 at a hidden size of 2000.
    """
    return 5e-4 * math.pow(2000 / hidden_size, 0.0775)


def learning_rate(wanted: Hyperparameters, hidden_size: int, updates_before: int) -> float:
    """Return the rate of the lineage's next update; it grows to the full one in `warmup_steps`.

    AdamW's first updates go the full rate in every direction, whatever the gradients' size: there
    is no history yet that would tell signal from noise.
    """
    full = wanted.learning_rate
    if full is None:
        full = default_rate(hidden_size)
    return full * min(1.0, (updates_before + 1) / max(1, wanted.warmup_steps))
