"""What a model's configuration says about what can be trained, before its weights are loaded."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from babylon_tasks.errors import UserError

# Heads that give no next token.
_OTHER_HEADS = re.compile(r"For(Sequence|Token|MultipleChoice|Image|Audio)\w*|ForMasked\w*|Reward")

# Tokens of pictures and sounds: the text model of a family may have no embedding for them.
_NOT_TEXT = re.compile("image|img|audio|video|vision", re.IGNORECASE)

# Kinds of rope scaling that stretch the positions beyond those trained first.
_STRETCHED = ("linear", "dynamic", "yarn")


@dataclass(frozen=True)
class ModelFacts:
    """Limits of a model: tokens where servers stop, embeddings, positions, and its attention."""

    stops: frozenset[int] = frozenset()
    vocabulary: int = sys.maxsize
    positions: int = sys.maxsize
    attention: str = "sdpa"  # refused where it is of another kind

    @classmethod
    def of(cls, base_model: str, config: Any, generation: Any) -> ModelFacts:
        """Read them from transformers' configurations; `generation` may be None.

        Raises:
            UserError: The model is of a kind that cannot be trained here.
        """
        text = config.get_text_config()
        _require_text_model(base_model, config)
        capped = getattr(text, "attn_logit_softcapping", None) or getattr(text, "alibi", False)
        stops = [*_ids(config), *_ids(text), *_ids(generation)]
        return cls(
            stops=frozenset(stops),
            vocabulary=int(getattr(text, "vocab_size", None) or sys.maxsize),
            positions=_positions(text),
            # sdpa passes over Gemma-2's cap on attention's logits, and scales Falcon's ALiBi.
            attention="eager" if capped else "sdpa",
        )

    def knows(self, token_ids: list[int]) -> bool:
        """Tell whether the model has embeddings for all of these tokens."""
        return max(token_ids, default=0) < self.vocabulary

    def require_vocabulary(self, tokenizer: Any, base_model: str) -> None:
        """Refuse a tokenizer with tokens that the model has no embedding for.

        Those of pictures and sounds may be missing.

        Raises:
            UserError: Others are missing.
        """
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        for token, token_id in vocabulary.items():
            if token_id < self.vocabulary:
                continue
            if token_id in added and added[token_id].special and _NOT_TEXT.search(token):
                continue
            raise UserError(
                f"the tokenizer of BASE_MODEL={base_model} has {max(vocabulary.values()) + 1} "
                f"tokens, but the model {self.vocabulary} embeddings (none for {token!r}): choose "
                "a folder or hub id where both are of the same model"
            )


def _require_text_model(base_model: str, config: Any) -> None:
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UserError(
            f"BASE_MODEL={base_model} is quantized ({kind or 'quantization_config'}): choose the "
            "same model in bfloat16, of which a GPU with the adapter's gradients holds more"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"BASE_MODEL={base_model} ({config.model_type}) has an encoder and a decoder: choose "
            "a model that only continues text (…ForCausalLM)"
        )
    if config.get_text_config() is not config:
        raise UserError(
            f"BASE_MODEL={base_model} ({config.model_type}) reads more than text: choose the "
            "family's model for text alone"
        )
    for name in getattr(config, "architectures", None) or ():
        if _OTHER_HEADS.search(name):
            raise UserError(
                f"BASE_MODEL={base_model} is a {name}, which says no next token: choose "
                "a model that continues text (…ForCausalLM)"
            )


def _ids(configuration: Any) -> list[int]:
    ids = getattr(configuration, "eos_token_id", None)
    return [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def _positions(config: Any) -> int:
    """Return the longest sequence that the model knows, in tokens."""
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return sys.maxsize
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _STRETCHED:
        first = rope.get("original_max_position_embeddings") or most
        most = max(most, int(first * float(rope.get("factor") or 1)))
    return most
