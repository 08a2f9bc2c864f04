"""Keys and values of a running batch, in which rows can join and leave.

Shapes: B rows, K heads, T positions, D per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_ROOM = 64  # positions kept free, so that most tokens are written in place


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values [B, K, T, D], with room for more positions."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers for these first states."""
        self._buffers = tuple(
            states.new_zeros(*states.shape[:2], states.shape[2] + _ROOM, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new positions, and return those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self._buffers = tuple(_longer(buffer, end) for buffer in self._buffers)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def fill(self, parts: Sequence[Part], number: int, length: int) -> None:
        """Take over rows of other caches, each padded on the left to `length`; all at once."""
        rows = sum(len(part.to) for part in parts)
        sources = [part.cache.layers[number] for part in parts]
        buffers = []
        for kind in range(2):
            like = sources[0]._buffers[kind]
            made = like.new_zeros(rows, like.shape[1], length + _ROOM, like.shape[3])
            for part, source in zip(parts, sources, strict=True):
                taken = min(length, source.length)
                old = source._buffers[kind][part.rows, :, source.length - taken : source.length]
                made[part.to, :, length - taken : length] = old
            buffers.append(made)
        self._buffers, self.length, self.is_initialized = tuple(buffers), length, True
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)

    def get_mask_sizes(self, cache_position: torch.Tensor) -> tuple[int, int]:
        """Return the positions that new ones look at, and the first of them."""
        return self.length + cache_position.shape[0], 0

    def get_seq_length(self) -> int:
        """Return the positions that are held."""
        return self.length

    def get_max_cache_shape(self) -> int:
        """Return -1: it grows."""
        return -1


class Part(NamedTuple):
    """Rows of a cache and the rows that they become."""

    cache: Cache
    rows: list[int]
    to: list[int]


def new_cache(layers: int) -> Cache:
    """Return an empty cache."""
    return Cache(layers=[BufferLayer() for _ in range(layers)])


def merged(parts: Sequence[Part], length: int) -> Cache:
    """Return one cache with the rows of others, each padded on the left to `length`."""
    parts = [part for part in parts if part.rows]
    cache = new_cache(len(parts[0].cache.layers))
    for number, layer in enumerate(cache.layers):
        layer.fill(parts, number, length)
    return cache


def _longer(buffer: torch.Tensor, end: int) -> torch.Tensor:
    rows, heads, held, size = buffer.shape
    made = buffer.new_zeros(rows, heads, end + end // 4 + _ROOM, size)
    made[:, :, :held] = buffer
    return made
