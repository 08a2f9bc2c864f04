"""The last layer for the trained positions only.

Nothing but the head reads what the last layer writes, and the head is asked about the answers. So
attention's queries and the MLP need no other position there; keys and values still come from all.
A model of four layers, as on a CPU, saves a fifth of each pass. It is off on CUDA: of many layers
it saves little, and gradient checkpointing would run the layer again without knowing the positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "babylon_last_layer"  # transformers' name for `_attend`

# With more queries than this share, a mask of its own costs more than it saves.
_MOST = 0.25


class LastLayer:
    """Prepares a network that was loaded with the attention of this name; others stay as they are.

    Shapes: B rows, T positions, P positions a row that are kept.
    """

    def __init__(self, body: Any) -> None:
        layers = getattr(body, "layers", None)
        layer = layers[-1] if layers is not None and len(layers) else None
        self._attention = getattr(layer, "self_attn", None)
        mlp = getattr(layer, "mlp", None)
        # Only a dense one, as in Llama, Qwen, Mistral and Gemma.
        if mlp is not None and hasattr(mlp, "down_proj"):
            whole = mlp.forward
            mlp.forward = lambda hidden: self._mlp(whole, hidden)
        self._positions_bp: torch.Tensor | None = None

    @contextlib.contextmanager
    def only(self, predicts: torch.Tensor) -> Iterator[None]:
        """Within it the last layer is right where `predicts` [B, T] is true, and nowhere else."""
        positions = int(predicts.sum(dim=1).max())
        if self._attention is None or positions > _MOST * predicts.shape[1]:
            yield
            return
        # The true ones of each row first; a row with fewer keeps some others, which do no harm.
        order = predicts.int().argsort(dim=1, descending=True, stable=True)
        self._positions_bp = self._attention.kept_positions_bp = order[:, :positions]
        try:
            yield
        finally:
            self._positions_bp = self._attention.kept_positions_bp = None

    def _mlp(self, whole: Any, hidden_bth: torch.Tensor) -> Any:
        if self._positions_bp is None:
            return whole(hidden_bth)
        index = self._positions_bp[..., None].expand(-1, -1, hidden_bth.shape[2])
        return torch.zeros_like(hidden_bth).scatter(1, index, whole(hidden_bth.gather(1, index)))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Any:
    """`sdpa`, for the kept positions where the module has some and no mask of its own."""
    kept_bp = getattr(module, "kept_positions_bp", None)
    if kept_bp is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    index = kept_bp[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    causal = torch.arange(key.shape[2], device=key.device) <= kept_bp[:, None, :, None]
    some, _ = sdpa_attention_forward(
        module, query.gather(2, index), key, value, causal, **options
    )  # [B, P, heads, size]
    out = torch.zeros_like(query).transpose(1, 2)
    return out.scatter(1, index.transpose(1, 2), some), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
