"""What is asked of a model with torch: steps by ART's loss, evaluations, generations."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable

import torch

from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Progress, Sample, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from workers.trainer.packages import package_versions
from workers.trainer.samples import read_samples
from workers.trainer.torch.base_model import base_revision
from workers.trainer.torch.checkpoint import policy
from workers.trainer.torch.evaluate import evaluate
from workers.trainer.torch.flops import Shape, step_flops
from workers.trainer.torch.generate import generate
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.matrix_rate import matrix_rate
from workers.trainer.torch.memory import release_memory
from workers.trainer.torch.policies import passes_of
from workers.trainer.torch.step import TorchStep

OnProgress = Callable[[Progress], None]


class TorchTrainer:
    """Works on one device; the base model is loaded once for as long as it is the same.

    Lineages that share it take turns: each request brings its own adapter.

    Args:
        slot: The GPU's UUID, which alone CUDA_VISIBLE_DEVICES names; or `cpu`, or `cpu-N`.

    Raises:
        UserError: The slot is a GPU and torch sees none.
    """

    def __init__(self, slot: str) -> None:
        self._device = torch.device("cpu" if slot.startswith("cpu") else "cuda")
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"torch {torch.__version__} sees no GPU, but this worker was given {slot}: "
                "install torch for your CUDA version (pytorch.org/get-started)"
            )
        self._model: LanguageModel | None = None

    def step(self, request: StepRequest, on_progress: OnProgress) -> StepResult:
        """Run one step; see `babylon_tasks.records.steps.Trainer` for what it raises.

        Everything it needs is loaded from the request: the same request gives the same weights,
        whatever ran before it in this process.
        """
        started = time.monotonic()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        on_progress(Progress("load", share=0.0))
        model = self._load_model(request.base_model, request.base_revision)
        samples = read_samples(request.samples_path)
        loaded = time.monotonic()
        step = TorchStep(model, request, on_progress)
        step.run(samples)
        seconds = time.monotonic() - started
        phases = dict(step.seconds_by_phase)
        phases["load"] += loaded - started
        metrics = {**step.metrics, **_reward_metrics(samples)}
        tokenized = step.tokenized
        metrics["logprobs_misfit"] = float(tokenized.misfits)
        sequences = tokenized.sequences
        return StepResult(
            loss=step.metrics["loss"],
            sequences=len(sequences),
            dropped_sequences=tokenized.dropped.total(),
            trainable_tokens=sequences.trainable_tokens,
            context_tokens=sequences.context_tokens,
            optimizer_steps=step.optimizer_steps,
            device=self._device_name(),
            gpu_seconds=seconds if self._device.type == "cuda" else 0.0,
            seconds_by_phase=phases,
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            windows=tokenized.windows,
            peak_memory_bytes=self._peak_memory_bytes(),
            mfu=self._mfu(model, request, step, phases),
            base_revision=model.revision,
            packages=package_versions(),
        )

    def evaluate(self, request: EvaluateRequest, on_progress: OnProgress) -> EvaluateResult:
        """Evaluate recorded answers; see `babylon_tasks.records.steps.Trainer`."""
        started = time.monotonic()
        on_progress(Progress("load", share=0.0))
        model = self._load_model(request.base_model, request.base_revision)
        samples = read_samples(request.samples_path)
        with policy(model, request.checkpoint):
            evaluation = evaluate(model, samples, request, on_progress)
        return EvaluateResult(
            trajectories=evaluation.trajectories,
            calls=evaluation.calls,
            dropped=evaluation.dropped,
            tokens=sum(one.tokens for one in evaluation.trajectories),
            device=self._device_name(),
            seconds=time.monotonic() - started,
            base_revision=model.revision,
        )

    def generate(self, request: GenerateRequest, on_progress: OnProgress) -> GenerateResult:
        """Answer prompts; see `babylon_tasks.records.steps.Trainer`."""
        started = time.monotonic()
        on_progress(Progress("load", share=0.0))
        model = self._load_model(request.base_model, request.base_revision)
        with policy(model, request.checkpoint):
            generations = generate(model, request, on_progress)
        return GenerateResult(
            generations=generations,
            dropped=sum(not answers for answers in generations),
            tokens=sum(len(one.token_ids) for answers in generations for one in answers),
            device=self._device_name(),
            seconds=time.monotonic() - started,
            base_revision=model.revision,
        )

    def _load_model(self, base_model: str, revision: str | None = None) -> LanguageModel:
        """Return the model in memory where it will do, else load this one in its place.

        Raises:
            UserError: It cannot be loaded, or is another revision; then the old one stays.
        """
        model = self._model
        if (
            model is None
            or model.base_model != base_model
            or revision not in (None, model.revision)
        ):
            revision = base_revision(base_model, revision)
            self._model = model = None
            release_memory()  # or both would be in memory at once
            self._model = model = LanguageModel(base_model, self._device, revision=revision)
        return model

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"

    def _peak_memory_bytes(self) -> int:
        """Of the GPU, in this step; without one of this process, since it started."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _mfu(
        self,
        model: LanguageModel,
        request: StepRequest,
        step: TorchStep,
        phases: dict[str, float],
    ) -> float | None:
        shape, rate = Shape.of(model.adapted), matrix_rate(self._device.type)
        seconds = phases["forward_backward"] + phases["optimizer"]
        if shape is None or rate is None or seconds <= 0:
            return None
        passes = passes_of(request.hyperparameters)
        flops = step_flops(shape, step.lengths, step.trained_tokens, passes)
        return flops / seconds / rate


def _reward_metrics(samples: list[Sample]) -> dict[str, float]:
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "groups": float(len({sample.window_id for sample in samples})),
        "trajectories": float(len(samples)),
    }
