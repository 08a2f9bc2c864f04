"""Attention of one new token a row, without a copy of the cache for each group of heads.

Several heads of queries share a head of keys. transformers repeats the keys and values for each,
which copies the whole cache at every token; here such heads are queries of one head.

Shapes: B rows, H heads, K heads of keys, G = H / K, T positions, D per head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "babylon_serve"  # transformers' name for `_attend`


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    groups = getattr(module, "num_key_value_groups", 1)
    if query.shape[2] > 1 or groups == 1:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return done
    rows, heads, _, size = query.shape
    query_bkgd = query.reshape(rows, heads // groups, groups, size)
    out_bkgd = torch.nn.functional.scaled_dot_product_attention(
        query_bkgd, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return out_bkgd.reshape(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
