"""The arithmetic of a step, for its MFU: what it needs, not what recomputation adds.

After PaLM's appendix B (arXiv 2204.02311) and Kaplan et al. (arXiv 2001.08361): a matrix of N
weights costs 2N operations a token forward, as much backward for the gradient of its input, and as
much again for that of the weights. Adapted: the base is frozen, so it has no gradient of weights;
the head is asked about trained tokens only; attention is causal, so half of its square counts; and
the forward passes without gradients (of the policy before and after the step, of the base model)
are part of the step. Norms, activations and the softmax are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model with an adapter depends on."""

    body_weights: int  # in the matrices of all layers
    lora_weights: int
    head_weights: int  # hidden size x vocabulary
    attention_width: int  # layers x heads x head size

    @classmethod
    def of(cls, adapted: Any) -> Shape | None:
        """Of a peft model with LoRA on all of its linear layers but the head.

        None where its weights do not tell the arithmetic: a token sees few of a layer's experts,
        and what has convolutions has another attention too.
        """
        network = adapted.get_base_model()
        if any(weight.dim() > 2 for weight in network.parameters()):
            return None
        config = network.config.get_text_config()
        head_size = getattr(config, "head_dim", None)
        head_size = head_size or config.hidden_size // config.num_attention_heads
        layers = [module for module in network.modules() if hasattr(module, "lora_A")]
        return cls(
            body_weights=sum(layer.get_base_layer().weight.numel() for layer in layers),
            lora_weights=sum(
                one.weight.numel()
                for layer in layers
                for both in (layer.lora_A, layer.lora_B)
                for one in both.values()
            ),
            head_weights=network.get_output_embeddings().weight.numel(),
            attention_width=config.num_hidden_layers * config.num_attention_heads * head_size,
        )


class Passes(NamedTuple):
    """How often a step's sequences go through the model.

    `training` is forward and backward; the two others are forward alone, with the adapter (the
    `policy`) and without it (the `base` model).
    """

    training: int = 1
    policy: int = 0
    base: int = 0


def step_flops(shape: Shape, lengths: Sequence[int], trained_tokens: int, passes: Passes) -> float:
    """Operations of one step over sequences of these lengths."""
    tokens = sum(lengths)
    pairs = sum(length * (length + 1) / 2 for length in lengths)  # a token sees itself
    body = 2.0 * tokens * shape.body_weights
    lora = 2.0 * tokens * shape.lora_weights
    head = 2.0 * trained_tokens * shape.head_weights
    attention = 4.0 * pairs * shape.attention_width  # scores, and what is made of the values
    # Forward and backward; attention has two products forward and four backward.
    training = 2 * body + 3 * lora + 2 * head + 3 * attention
    base = body + head + attention  # it has no adapter
    return passes.training * training + passes.policy * (base + lora) + passes.base * base
