"""ART's `LocalBackend` with our tokens and our service; everything between them is ART's."""

from __future__ import annotations

import time
from typing import Any

from art.local import LocalBackend

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Progress, StepRequest
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.service import TorchService
from workers.trainer.torch.tokenized import Recorded, TokenizedGroups, tokenize_groups


class TorchBackend(LocalBackend):  # type: ignore[misc]
    """A backend for one step: ART's goes wrong for good after its first exception."""

    def __init__(
        self,
        path: str,
        model: LanguageModel,
        service: TorchService,
        request: StepRequest,
        recorded: Recorded,
        on_progress: Any,
    ) -> None:
        super().__init__(path=path, in_process=True)
        self._model, self._service, self._request = model, service, request
        self._recorded, self._on_progress = recorded, on_progress
        self.tokenized = TokenizedGroups()
        self.tokenize_seconds = 0.0

    async def _get_service(self, model: Any) -> Any:
        return self._service

    def _get_packed_tensors(
        self, model: Any, trajectory_groups: list[Any], advantage_balance: float, **_: Any
    ) -> Any:
        """Our tokens in ART's packed form: one row of all sequences, without padding.

        Raises:
            Final: No call of these trajectories can be trained.
        """
        started = time.monotonic()
        limit = self._request.hyperparameters.max_sequence_tokens
        self.tokenized = tokenize_groups(
            self._model.chat,
            trajectory_groups,
            limit,
            self._recorded,
            lambda done, total: self._on_progress(Progress("tokenize", done, total)),
        )
        sequences, dropped = self.tokenized.sequences, self.tokenized.dropped
        if not sequences.teach(advantage_balance):
            raise Final(
                f"nothing to train: of the calls, {dropped['empty']} are empty, "
                f"{dropped['too_long']} are longer than MAX_SEQUENCE_TOKENS ({limit}), the chat "
                f"template refuses {dropped['template']}, and {len(sequences)} are left to teach; "
                f"{self.tokenized.without_advantage} trajectories have no advantage, because "
                "rewards that hardly differ cannot be compared (MIN_REWARD_SPREAD)"
            )
        packed = sequences.packed(advantage_balance)
        self.tokenize_seconds = time.monotonic() - started
        return packed
