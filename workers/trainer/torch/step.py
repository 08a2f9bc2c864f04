"""One training step: the samples' tokens, one optimizer step by ART's loss, the checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Hyperparameters, Progress, Sample, StepRequest
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch import checkpoint
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.gradients import accumulate_within_memory
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import OneSequenceTooLarge
from workers.trainer.torch.tokenized import TokenizedGroups, tokenize_groups

MAX_GRADIENT_NORM = 1.0


def learning_rate(wanted: Hyperparameters, steps_before: int) -> float:
    """Return the rate of the lineage's next step; it grows to the full one in `warmup_steps`.

    AdamW's first steps go the full rate in every direction, whatever the gradients' size: there
    is no history yet that would tell signal from noise.
    """
    return wanted.learning_rate * min(1.0, (steps_before + 1) / max(1, wanted.warmup_steps))


class TorchStep:
    """Trains one request's step with a model that stays in memory between requests.

    `tokenized`, `seconds_by_phase` and `metrics` are complete after `run`.
    """

    def __init__(
        self, model: LanguageModel, request: StepRequest, on_progress: Callable[[Progress], None]
    ) -> None:
        self._model, self._request, self._on_progress = model, request, on_progress
        self.tokenized = TokenizedGroups()
        self.seconds_by_phase: dict[str, float] = {}
        self.metrics: dict[str, float] = {}

    def run(self, samples: list[Sample]) -> None:
        """Take one optimizer step on all sequences of these samples and write the checkpoint.

        Raises:
            Final: No call can be trained, one sequence does not fit the GPU, or the gradients are
                not finite.
            CheckpointUnreadable: The parent's files cannot be read.
        """
        started = time.monotonic()
        step = self._tokenize(samples)
        tokenized = time.monotonic()
        self._on_progress(Progress("load"))
        optimizer, steps_before = self._load()
        loaded = time.monotonic()
        self._optimize(optimizer, step)
        trained = time.monotonic()
        self._on_progress(Progress("save"))
        checkpoint.save(self._model, optimizer, self._request, steps_before + 1)
        self.seconds_by_phase |= {
            "tokenize": tokenized - started,
            "load": loaded - tokenized,
            "checkpoint": time.monotonic() - trained,
        }

    def _tokenize(self, samples: list[Sample]) -> StepTensors:
        """Return the samples as ART's packed tensors: one row of all sequences, without padding."""
        wanted = self._request.hyperparameters
        limit, balance = wanted.max_sequence_tokens, 1 - wanted.negative_scale
        self.tokenized = tokenize_groups(
            self._model.chat,
            trajectory_groups(samples),
            limit,
            lambda done, total: self._on_progress(Progress("tokenize", done, total)),
        )
        sequences, dropped = self.tokenized.sequences, self.tokenized.dropped
        if not sequences.teach(balance):
            positions = self._model.chat.facts.positions
            longest = f"MAX_SEQUENCE_TOKENS ({limit})"
            if positions < limit:
                longest = f"the {positions} tokens that BASE_MODEL takes"
            raise Final(
                f"nothing to train: of the calls, {dropped['empty']} are empty, "
                f"{dropped['too_long']} are longer than {longest}, the chat "
                f"template refuses {dropped['template']}, {dropped['markup']} are control tokens, "
                f"{dropped['vocabulary']} need tokens that BASE_MODEL has not, "
                f"and {len(sequences)} are left to teach; "
                f"{self.tokenized.without_advantage} trajectories have no advantage, because "
                "rewards that hardly differ cannot be compared (MIN_REWARD_SPREAD)"
            )
        return StepTensors.from_packed(sequences.packed(balance))

    def _load(self) -> tuple[torch.optim.Optimizer, int]:
        wanted = self._request.hyperparameters
        self._model.add_adapter(wanted.lora_rank, wanted.lora_alpha, self._request.seed)
        # No weight decay: it would move the adapter where the data says nothing, and what holds
        # it near the base model is the KL penalty.
        optimizer = torch.optim.AdamW(self._model.parameters(), weight_decay=0.0)
        steps_before = 0
        if self._request.parent is not None:
            steps_before = checkpoint.load(self._model, optimizer, self._request)
        for group in optimizer.param_groups:  # the parent's state carries the parent's rate
            group["lr"] = learning_rate(wanted, steps_before)
        return optimizer, steps_before

    def _optimize(self, optimizer: torch.optim.Optimizer, step: StepTensors) -> None:
        wanted = self._request.hyperparameters
        started = time.monotonic()
        try:
            totals = accumulate_within_memory(
                self._model,
                step,
                wanted.kl_penalty,
                wanted.micro_batch_tokens,
                {},  # ART's defaults; the KL penalty is in the advantages
                self._on_progress,
            )
        except OneSequenceTooLarge as error:
            raise Final(
                f"CUDA out of memory with one sequence of {error.tokens} tokens: lower "
                f"MAX_SEQUENCE_TOKENS (now {wanted.max_sequence_tokens}), use a smaller "
                "BASE_MODEL or a larger GPU; or let W&B's serverless training hold the "
                "model (docs/training.md)"
            ) from None
        computed = time.monotonic()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        if not (torch.isfinite(norm) and math.isfinite(totals.loss)):
            raise Final("the gradients are not finite: lower LEARNING_RATE or change BASE_MODEL")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.seconds_by_phase = {
            "forward_backward": computed - started,
            "optimizer": time.monotonic() - computed,
        }
        self.metrics = {
            "loss": totals.loss,
            "entropy": totals.entropy,
            "grad_norm": float(norm),
            "micro_batches": float(totals.micro_batches),
            "learning_rate": optimizer.param_groups[0]["lr"],
            **totals.ratios,
        }
        if totals.kl is not None:
            self.metrics["kl"] = totals.kl
