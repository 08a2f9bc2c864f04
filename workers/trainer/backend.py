"""ART's `LocalBackend` with our tokens and our service; everything between them is ART's."""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from art.local import LocalBackend
from art.preprocessing.pack import packed_tensors_from_tokenized_results

from babylon_tasks.errors import Final
from babylon_tasks.training import Progress, StepRequest
from workers.trainer.language_model import LanguageModel
from workers.trainer.service import TorchService
from workers.trainer.tokenized import TokenizedGroups, tokenize_groups


class TorchBackend(LocalBackend):  # type: ignore[misc]
    """A backend for one step: ART's goes wrong for good after its first exception."""

    def __init__(
        self,
        path: str,
        model: LanguageModel,
        service: TorchService,
        request: StepRequest,
        on_progress: Any,
    ) -> None:
        super().__init__(path=path, in_process=True)
        self._model, self._service, self._request = model, service, request
        self._on_progress = on_progress
        self.tokenized = TokenizedGroups()
        self.tokenize_seconds = 0.0

    async def _get_service(self, model: Any) -> Any:
        return self._service

    def _get_packed_tensors(
        self, model: Any, trajectory_groups: list[Any], advantage_balance: float, **_: Any
    ) -> Any:
        """ART's packing of our tokens, padded to the longest instead of a multiple of 2,048.

        Raises:
            Final: No call of these trajectories can be trained.
        """
        started = time.monotonic()
        self.tokenized = tokenize_groups(
            self._model.chat,
            trajectory_groups,
            self._request.hyperparameters.max_sequence_tokens,
            lambda done, total: self._on_progress(Progress("tokenize", done, total)),
        )
        packed = self._pack(advantage_balance)
        self.tokenize_seconds = time.monotonic() - started
        return packed

    def _pack(self, advantage_balance: float) -> Any:
        results, dropped = self.tokenized.results, self.tokenized.dropped
        if not any(r.advantage > 0 or advantage_balance < 1 for r in results):
            limit = self._request.hyperparameters.max_sequence_tokens
            raise Final(
                f"nothing to train: of the calls, {dropped['empty']} are empty, "
                f"{dropped['too_long']} are longer than MAX_SEQUENCE_TOKENS ({limit}), the chat "
                f"template refuses {dropped['template']}, and {len(results)} are left to teach"
            )
        random.seed(self._request.seed)  # ART shuffles the rows
        longest = max(len(result.token_ids) for result in results)
        packed = packed_tensors_from_tokenized_results(
            results,
            -(-longest // 8) * 8,
            pad_token_id=self._model.tokenizer.eos_token_id or 0,
            truncate_long_results=False,
            advantage_balance=advantage_balance,
            pack_results=False,
        )
        assert torch.isfinite(packed["advantages"]).all()
        return packed
