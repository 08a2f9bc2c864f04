"""One training step: the samples' tokens, updates by ART's loss, the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import torch

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Progress, Sample, StepRequest
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch import checkpoint
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import OneSequenceTooLarge
from workers.trainer.torch.tokenized import TokenizedGroups, tokenize_groups
from workers.trainer.torch.updates import SPAN, Updates


class TorchStep:
    """Trains one request's step with a model that stays in memory between requests.

    `tokenized`, `optimizer_steps`, `seconds_by_phase` and `metrics` are complete after `run`, and
    so are `lengths` and `trained_tokens` of what is trained in each pass.
    """

    def __init__(
        self, model: LanguageModel, request: StepRequest, on_progress: Callable[[Progress], None]
    ) -> None:
        self._model, self._request, self._on_progress = model, request, on_progress
        self._newest = Progress("load")
        self.tokenized = TokenizedGroups()
        self.lengths: list[int] = []
        self.trained_tokens = 0
        self.optimizer_steps = 0
        self.seconds_by_phase: dict[str, float] = {}
        self.metrics: dict[str, float] = {}

    def run(self, samples: list[Sample]) -> None:
        """Train on all sequences of these samples as the recipe says and write the checkpoint.

        Raises:
            Final: No call can be trained, one sequence does not fit the GPU, or the gradients are
                not finite.
            CheckpointUnreadable: The parent's files cannot be read.
        """
        started = time.monotonic()
        mini_batches = self._tokenize(samples)
        self.lengths = [length for one in mini_batches for length in one.lengths]
        self.trained_tokens = sum(one.trained_tokens for one in mini_batches)
        tokenized = time.monotonic()
        self._report(Progress("load", share=SPAN[0]))
        optimizer, steps_before = self._load()
        loaded = time.monotonic()
        updates = Updates(
            self._model, optimizer, self._request.hyperparameters, steps_before, self._report
        )
        self._train(updates, mini_batches)
        self.metrics, self.optimizer_steps = updates.metrics, updates.count
        trained = time.monotonic()
        # Not the passes' time that is left: there is none.
        self._report(
            msgspec.structs.replace(
                self._newest, phase="save", done=0, total=0, share=SPAN[1], seconds_left=None
            )
        )
        checkpoint.save(self._model, optimizer, self._request, steps_before + updates.count)
        self.seconds_by_phase = {
            **updates.seconds_by_phase,
            "tokenize": tokenized - started,
            "load": loaded - tokenized,
            "checkpoint": time.monotonic() - trained,
        }

    def _report(self, progress: Progress) -> None:
        self._newest = progress
        self._on_progress(progress)

    def _tokenize(self, samples: list[Sample]) -> list[StepTensors]:
        """Return the samples as ART's packed tensors, those of each mini-batch that teaches.

        They are rows of all its sequences, without padding; weights and advantages are normalised
        in each, so that several windows teach what they would one by one.
        """
        wanted = self._request.hyperparameters
        limit, balance = wanted.max_sequence_tokens, 1 - wanted.negative_scale
        self.tokenized = tokenize_groups(
            self._model.chat,
            trajectory_groups(samples),
            limit,
            lambda done, total: self._report(
                Progress("tokenize", done, total, share=SPAN[0] * done / total)
            ),
            by_deviation=wanted.group_deviation,
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
        return [
            StepTensors.from_packed(part.packed(balance))
            for part in self.tokenized.mini_batches(wanted.windows_per_update)
            if part.teach(balance)
        ]

    def _load(self) -> tuple[torch.optim.Optimizer, int]:
        wanted = self._request.hyperparameters
        self._model.add_adapter(wanted.lora_rank, wanted.lora_alpha, self._request.seed)
        # No weight decay: it would move the adapter where the data says nothing. What holds it is
        # the limit on a step, and a KL penalty where one is set.
        optimizer = torch.optim.AdamW(self._model.parameters(), weight_decay=0.0)
        steps_before = 0
        if self._request.parent is not None:
            steps_before = checkpoint.load(self._model, optimizer, self._request)
        return optimizer, steps_before

    def _train(self, updates: Updates, mini_batches: list[StepTensors]) -> None:
        try:
            updates.run(mini_batches, self.tokenized.windows_that_teach)
        except OneSequenceTooLarge as error:
            raise Final(
                f"CUDA out of memory with one sequence of {error.tokens} tokens: lower "
                "MAX_SEQUENCE_TOKENS "
                f"(now {self._request.hyperparameters.max_sequence_tokens}), use a smaller "
                "BASE_MODEL or a larger GPU; or let W&B's serverless training hold the "
                "model (docs/training.md)"
            ) from None
