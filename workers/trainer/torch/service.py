"""ART's `ModelService` on transformers, peft and `art.loss`: one optimizer step per call."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from art.preprocessing.pack import packed_tensors_from_dir

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Hyperparameters, Progress, StepRequest
from workers.trainer.torch import checkpoint
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.gradients import OneSequenceTooLarge, accumulate_within_memory
from workers.trainer.torch.language_model import LanguageModel

MAX_GRADIENT_NORM = 1.0


def learning_rate(wanted: Hyperparameters, steps_before: int) -> float:
    """The rate of the lineage's next step; it grows evenly to the full one in `warmup_steps`.

    AdamW's first steps go the full rate in every direction, whatever the gradients' size: there
    is no history yet that would tell signal from noise.
    """
    return wanted.learning_rate * min(1.0, (steps_before + 1) / max(1, wanted.warmup_steps))


class TorchService:
    """Trains one request's step with a model that stays in memory between requests.

    It serves nothing: recorded traces need no rollouts, so no server shares the trainer's GPU.
    """

    def __init__(
        self, model: LanguageModel, request: StepRequest, on_progress: Callable[[Progress], None]
    ) -> None:
        self._model, self._request, self._on_progress = model, request, on_progress
        self.seconds_by_phase: dict[str, float] = {}

    async def start_openai_server(self, config: Any) -> tuple[str, int]:
        """Not here: see `workers.serve`."""
        raise NotImplementedError("this trainer serves nothing; run python -m workers.serve")

    async def vllm_engine_is_sleeping(self) -> bool:
        """There is no vLLM."""
        return False

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """Take one optimizer step on all sequences and write the checkpoint.

        Yields:
            The step's metrics, once.

        Raises:
            Final: One sequence does not fit the GPU, or the gradients are not finite.
            CheckpointUnreadable: The parent's files cannot be read.
        """
        started = time.monotonic()
        self._on_progress(Progress("load"))
        optimizer, steps_before = self._load()
        step = StepTensors.from_packed(packed_tensors_from_dir(**disk_packed_tensors))
        loaded = time.monotonic()
        metrics = self._optimize(optimizer, step, config, _config)
        trained = time.monotonic()
        self._on_progress(Progress("save"))
        checkpoint.save(self._model, optimizer, self._request, steps_before + 1)
        self.seconds_by_phase |= {
            "load": loaded - started,
            "checkpoint": time.monotonic() - trained,
        }
        yield metrics

    async def train_sft(
        self, batches: Any, config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """Supervised fine-tuning is not offered."""
        raise NotImplementedError("this trainer does reinforcement learning only")
        yield {}  # makes it the async generator that ART's protocol asks for

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

    def _optimize(
        self, optimizer: torch.optim.Optimizer, step: StepTensors, config: Any, loss_config: Any
    ) -> dict[str, float]:
        wanted = self._request.hyperparameters
        started = time.monotonic()
        try:
            totals = accumulate_within_memory(
                self._model,
                step,
                config.kl_penalty_coef,
                wanted.micro_batch_tokens,
                {**loss_config, "kl_penalty_coef": 0.0},  # the penalty is in the advantages
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
        metrics = {
            "loss": totals.loss,
            "entropy": totals.entropy,
            "grad_norm": float(norm),
            "micro_batches": float(totals.micro_batches),
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        if totals.kl is not None:
            metrics["kl"] = totals.kl
        return metrics | totals.ratios
