"""Generates answers with a network that its owner keeps: the trainer, or the small server.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from babylon_tasks.records.trainer_requests import Generation
from workers.trainer.torch.chat_format import ChatFormat


class Generator:
    """Generates with whatever adapter is active on this network.

    The network's own defaults (top_k, repetition penalty) are taken from it: they would hide what
    training did.
    """

    def __init__(self, network: Any, chat: ChatFormat) -> None:
        self._chat = chat
        self._stops = chat.stops
        network.generation_config = GenerationConfig()
        self.context_tokens = chat.facts.positions

    def generate(
        self,
        network: Any,
        prompts: Sequence[list[int]],
        max_tokens: int,
        temperature: float,
        seed: int | None = None,
        on_token: Callable[[], None] = lambda: None,
    ) -> list[Generation]:
        """Generate one answer to each prompt, all at once.

        Args:
            network: The one that this was made for, or a peft model around it.
            prompts: Token ids; each has at least `max_tokens` less than `context_tokens`.
            max_tokens: Of each answer.
            temperature: 0 takes the likeliest token each time; above it, tokens are drawn.
            seed: For the draws; None goes on with torch's random state.
            on_token: Called for each token of the longest answer.
        """
        if seed is not None:
            torch.manual_seed(seed)
        device = network.device
        longest = max(map(len, prompts))
        padding = min(self._stops, default=0)
        # Padded on the left: what is generated stands beside the prompt's end.
        tokens_bt = torch.full((len(prompts), longest), padding)
        mask_bt = torch.zeros_like(tokens_bt)
        for row, prompt in enumerate(prompts):
            tokens_bt[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_bt[row, longest - len(prompt) :] = 1
        # All tokens may be drawn: transformers' own default is the 50 likeliest.
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0}
        recorder = _Recorder(on_token)
        training = network.training
        network.eval()  # gradient checkpointing, where it is on, would forget keys and values
        try:
            output_bt = network.generate(
                input_ids=tokens_bt.to(device),
                attention_mask=mask_bt.to(device),
                logits_processor=LogitsProcessorList([recorder]),
                generation_config=GenerationConfig(
                    max_new_tokens=max_tokens,
                    eos_token_id=sorted(self._stops) or None,
                    pad_token_id=padding,
                    **(drawn if temperature > 0 else {}),
                ),
            )
        finally:
            network.train(training)
        values_bt = recorder.logprobs(output_bt)
        rows = zip(output_bt[:, longest:].tolist(), values_bt.tolist(), strict=True)
        return [self._generation(tokens, values) for tokens, values in rows]

    def _generation(self, tokens: list[int], values: list[float]) -> Generation:
        """Cut off what follows the end: padding, while other rows went on."""
        ends = (at for at, token in enumerate(tokens, start=1) if token in self._stops)
        end = next(ends, None)
        tokens, values = tokens[:end], values[:end]
        return Generation(
            text=self._chat.visible(tokens),
            token_ids=tuple(tokens),
            logprobs=tuple(values),
            finish_reason="length" if end is None else "stop",
        )


class _Recorder(LogitsProcessor):  # type: ignore[misc]
    """Keeps the log-probability of each token that is chosen, before the temperature's effect.

    It runs between two tokens, so it sees what was chosen one call later; all logits would be
    gigabytes.
    """

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._logprobs_bv: torch.Tensor | None = None
        self._chosen_b1: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._look(input_ids)
        self._logprobs_bv = torch.log_softmax(scores.float(), dim=-1)
        self._on_token()
        return scores

    def logprobs(self, output_bt: torch.Tensor) -> torch.Tensor:
        """Of the generated tokens, the last ones of the output; [B, generated]."""
        self._look(output_bt)
        return torch.cat(self._chosen_b1, dim=1)

    def _look(self, tokens_bt: torch.Tensor) -> None:
        if self._logprobs_bv is not None:
            self._chosen_b1.append(self._logprobs_bv.gather(1, tokens_bt[:, -1:]))
