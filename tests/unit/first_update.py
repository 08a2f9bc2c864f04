"""The gradients of a training step's first update, without the step around it."""

from __future__ import annotations

import torch

from tests.unit.tiny import hyperparameters
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.gradients import Objective, Totals, accumulate_within_memory
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.policies import mean_drift, with_policies


def first_gradients(
    model: LanguageModel, step: StepTensors, **changes: float | str
) -> tuple[list[torch.Tensor], Totals]:
    """Return the gradients of a training step's first update."""
    wanted = hyperparameters(**changes)
    meter = Meter(0, 0, Passes(), lambda progress: None)
    step = with_policies(model, step, wanted, meter)
    mean = 0.0
    if wanted.kl_penalty > 0:
        mean = mean_drift(model, step, wanted.micro_batch_tokens)
    objective = Objective(wanted.ratio_cap, wanted.kl_penalty, mean)
    model.adapted.zero_grad()
    totals = accumulate_within_memory(model, step, objective, wanted.micro_batch_tokens, meter)
    return [p.grad.clone() for p in model.parameters()], totals
