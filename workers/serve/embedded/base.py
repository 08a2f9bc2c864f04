"""A base model in memory, and what its cache lets the engine do."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from workers.serve.embedded.attention import ATTENTION
from workers.serve.embedded.cache import Part, merged, new_cache
from workers.serve.embedded.lora import Adapter, Overlay
from workers.trainer.torch.base_model import load_base

CPU_CACHE_BYTES = 2 << 30
GPU_CACHE_SHARE = 0.5  # of what is free once the model is loaded


class Base:
    """A network with its chat format; `layers` of a cache in which rows can join, or None.

    A prompt of more than `most_characters` has more tokens than the model takes.

    Raises:
        UserError: It cannot be loaded.
    """

    def __init__(self, base_model: str, revision: str, device: torch.device) -> None:
        self.base_model, self.revision, self.device = base_model, revision, device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.chat, network = load_base(base_model, revision, device, dtype)
        # Its own defaults (top_k, a penalty) would change what was trained.
        network.generation_config = GenerationConfig()
        self.network: Any = network.eval()
        longest = max(map(len, self.chat.tokenizer.get_vocab()))
        self.most_characters = longest * self.chat.facts.positions
        self.used_at = time.monotonic()
        self.overlay = Overlay(network)
        parameters = inspect.signature(network.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.padding = min(self.chat.stops, default=0)
        with torch.inference_mode():
            if self.chat.facts.attention == "sdpa":
                network.set_attn_implementation(ATTENTION)
            self.layers, bytes_a_token = self._probe()
            if self.layers is None:
                network.set_attn_implementation(self.chat.facts.attention)
        free = CPU_CACHE_BYTES
        if device.type == "cuda":
            free = int(torch.cuda.mem_get_info(device)[0] * GPU_CACHE_SHARE)
        self.cache_tokens = free // bytes_a_token

    def forward(
        self,
        tokens_bt: torch.Tensor,
        mask_bt: torch.Tensor | None,
        starts: Sequence[int],
        cache: Any,
    ) -> torch.Tensor:
        """Return the logits [B, V] after the last token, and add these to the cache.

        Args:
            tokens_bt: New tokens, on any device.
            mask_bt: What is no padding, of the cache's positions and the new ones; None: all.
            starts: The position of each row's first new token; below 0 for padding.
            cache: Of `new_cache`.
        """
        begin = torch.tensor(starts)[:, None]
        positions_bt = (begin + torch.arange(tokens_bt.shape[1])).clamp(min=0)
        logits: torch.Tensor = self.network(
            input_ids=tokens_bt.to(self.device),
            attention_mask=None if mask_bt is None else mask_bt.to(self.device),
            position_ids=positions_bt.to(self.device),
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        ).logits
        return logits[:, -1]

    def logprobs(self, token_ids: Sequence[int], adapter: Adapter | None) -> list[float]:
        """Return the log-probability of each token but the first, at temperature 1.

        Only for the thread that generates with this network.
        """
        self.overlay.use([adapter])
        tokens_bt = torch.tensor([list(token_ids)], device=self.device)
        with torch.inference_mode():
            logits = self.network(input_ids=tokens_bt, use_cache=False).logits[0, :-1]
            values = logits.float().log_softmax(-1).gather(1, tokens_bt[0, 1:, None])
        return [float(value) for value in values.squeeze(1).clamp(max=0)]

    def goes_with(self, adapter: Adapter | None, others: Sequence[Adapter | None]) -> bool:
        """Tell whether rows with this adapter may be in a batch with these."""
        return self.overlay.mixes or all(adapter is other for other in others)

    def _probe(self) -> tuple[int | None, int]:
        """Return the layers of a cache that rows can join, or None, and the bytes of a token.

        Some architectures keep a state, or a window of tokens, in which rows of other lengths
        cannot be put; some know no positions but those of the cache.
        """
        self.overlay.use([None, None])
        some = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
        plain = self.network(input_ids=some.to(self.device), use_cache=True)
        cache = getattr(plain, "past_key_values", None)
        if not isinstance(cache, DynamicCache) or not cache.layers:
            return None, 1 << 20
        size = sum(
            states[0, :, :1].numel() * states.element_size()
            for layer in cache.layers
            for states in (layer.keys, layer.values)
            if states is not None
        )
        if any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
            return None, max(size, 1)
        return (len(cache.layers) if self._joins(len(cache.layers)) else None), max(size, 1)

    def _joins(self, layers: int) -> bool:
        """Try it: two rows of other lengths, put together, must go on as each does alone."""
        rows = [[0, 1, 2, 3, 4, 5], [5, 4, 3]]
        try:
            caches = [new_cache(layers) for _ in rows]
            self.overlay.use([None])
            for row, cache in zip(rows, caches, strict=True):
                self.forward(torch.tensor([row[:-1]]), None, [0], cache)
            both = merged([Part(caches[0], [0], [0]), Part(caches[1], [0], [1])], 5)
            mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
            ends = torch.tensor([row[-1:] for row in rows])
            self.overlay.use([None, None])
            together = self.forward(ends, mask, [5, 2], both)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            return False
        self.overlay.use([None])
        alone = torch.stack(
            [self.network(input_ids=torch.tensor([r]).to(self.device)).logits[0, -1] for r in rows]
        )
        apart = (together - alone).abs().max()
        rounding = 1e-3 if self.network.dtype == torch.float32 else 0.1
        return bool(apart <= rounding * alone.abs().max())
