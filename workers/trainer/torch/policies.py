"""Log-probabilities of a step's answers by other policies than the one in training.

They are the base model, and the policy at the step's start (its `parent`). Each is asked at most
once a step, and kept in CPU memory, however many updates follow.

Shapes: S tokens of a mini-batch, B rows of a micro-batch, N trained tokens of it.
"""

from __future__ import annotations

import dataclasses

import torch

from babylon_tasks.records.steps import Hyperparameters
from workers.trainer.torch.batches import StepTensors, micro_batches
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import Batches, within_memory
from workers.trainer.torch.meter import Meter


def passes_of(wanted: Hyperparameters) -> Passes:
    """Return the passes of a step: the policy is asked at its start and at its end."""
    return Passes(wanted.passes, policy=2, base=int(_needs_base(wanted)))


def _needs_base(wanted: Hyperparameters) -> bool:
    reference = wanted.kl_penalty > 0 and wanted.kl_reference == "base"
    return reference or wanted.unrecorded_ratio == "base"


def with_policies(
    model: LanguageModel, step: StepTensors, wanted: Hyperparameters, meter: Meter
) -> StepTensors:
    """Return the tensors with `start`, the KL penalty's `reference`, and ratios as wanted.

    Raises:
        OneSequenceTooLarge: One sequence alone does not fit.
    """
    start = logprobs_by(model, step, wanted.micro_batch_tokens, meter)
    policies = {"one": None, "parent": start, "base": None}
    if _needs_base(wanted):
        with model.as_base():
            policies["base"] = logprobs_by(model, step, wanted.micro_batch_tokens, meter)
    tensors = {**step.tensors, "start": start}
    reference = policies[wanted.kl_reference]
    if wanted.kl_penalty > 0 and reference is not None:
        tensors["reference"] = reference
    answered_by = policies[wanted.unrecorded_ratio]
    if answered_by is not None:
        recorded = tensors["recorded"] = tensors["logprobs"]
        unknown = recorded.isnan() & tensors["assistant_mask"].bool()
        tensors["logprobs"] = torch.where(unknown, answered_by, recorded)
    return dataclasses.replace(step, tensors=tensors)


def logprobs_by(
    model: LanguageModel, step: StepTensors, micro_batch_tokens: int, meter: Meter
) -> torch.Tensor:
    """Return the log-probabilities of the trained tokens by the model as it is, elsewhere 0; [S].

    Raises:
        OneSequenceTooLarge: One sequence alone does not fit.
    """
    meter.begin()

    @torch.no_grad()
    def run(batches: Batches) -> torch.Tensor:
        meter.again()
        parts, at = [], []
        for rows in batches:
            batch = step.take(rows, model.device)
            logprobs_n, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
            parts.append(logprobs_n)  # copied at the end: here it would wait for the GPU
            at.append(step.trained_at(rows))
            meter.add(len(rows), step.tokens_in(rows))
        values_s = torch.zeros(step.tensors["tokens"].shape)
        values_s[torch.cat(at)] = torch.cat(parts).float().cpu()
        return values_s

    most_tokens = min(micro_batch_tokens, model.most_tokens_at_once)
    return within_memory(step.lengths, most_tokens, run)


def mean_drift(model: LanguageModel, step: StepTensors, micro_batch_tokens: int) -> float:
    """Return the mean of `start` less `reference`, over the trained tokens."""
    most_tokens = min(micro_batch_tokens, model.most_tokens_at_once)
    rows = [row for batch in micro_batches(step.lengths, most_tokens) for row in batch]
    at = step.trained_at(rows)  # in the order of the micro-batches: float sums depend on it
    drift = (step.tensors["start"] - step.tensors["reference"])[at].to(model.device)
    return float(drift.sum()) / (step.trained_tokens + 1e-6)


def changes(step: StepTensors, after_s: torch.Tensor) -> torch.Tensor:
    """Return how far each answer's log-probability is from the step's start, in nats; [rows]."""
    moved_s = (after_s.double() - step.tensors["start"].double()).cumsum(0)
    starts = torch.tensor(step.starts)  # no first token is trained, so the sum begins after it
    ends = starts + torch.tensor(step.lengths) - 1
    return (moved_s[ends] - moved_s[starts]).abs()
