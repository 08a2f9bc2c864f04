"""The arithmetic of a step against numbers worked out by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
from peft import LoraConfig, get_peft_model
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from workers.trainer.torch.flops import Passes, Shape, step_flops
from workers.trainer.torch.matrix_rate import matrix_rate

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 10,
}
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


def test_the_shape_is_that_of_the_matrices() -> None:
    # A head has 4. A layer: q 8x8, k and v 8x4 each, o 8x8: 192; three of 8x16: 384; 576 together.
    # Two layers: 1,152. Rank 2: q and o 2(8+8) each, k and v 2(8+4) each, three of 2(8+16): 256.
    tied = Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=True))
    assert Shape.of(get_peft_model(tied, LORA)) == Shape(1152, 512, 80, 2 * 2 * 4)
    # A head of its own size, 6: q and o 8x12, k and v 8x6: 288, with 384: 672 a layer.
    # Rank 2: q and o 2(8+12), k and v 2(8+6), the rest as before: 80 + 56 + 144 = 280 a layer.
    wide = Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=6, tie_word_embeddings=False))
    assert Shape.of(get_peft_model(wide, LORA)) == Shape(1344, 560, 80, 2 * 2 * 6)


def test_experts_have_no_figure_and_cost_no_step() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    network = Qwen3MoeForCausalLM(Qwen3MoeConfig(**TINY, **experts, head_dim=4))
    assert Shape.of(get_peft_model(network, LORA)) is None


def test_the_flops_of_a_step() -> None:
    # Three tokens see 1 + 2 + 3 tokens: 6 pairs; one token alone makes one more.
    # Forward: body 2*4*1152 = 9,216; LoRA 2*4*512 = 4,096; head 2*2*80 = 320;
    # attention 4*7*16 = 448.
    # The step: 2*9,216 + 3*4,096 + 2*320 + 3*448 = 32,704.
    # A forward pass of the base: 9,216 + 320 + 448 = 9,984; of the policy: 4,096 more, 14,080.
    shape = Shape(1152, 512, 80, 16)
    assert step_flops(shape, [3, 1], 2, Passes()) == 32_704
    several = Passes(training=4, policy=2, base=1)
    assert step_flops(shape, [3, 1], 2, several) == 4 * 32_704 + 2 * 14_080 + 9_984


def test_long_sequences_cost_more_than_their_tokens() -> None:
    shape = Shape(1152, 512, 80, 16)
    assert step_flops(shape, [1000], 2, Passes()) > step_flops(shape, [500, 500], 2, Passes())


def test_the_matrix_rate_is_measured_once() -> None:
    rate = matrix_rate("cpu")
    assert rate is not None
    assert 1e8 < rate < 1e14
    assert matrix_rate("cpu") == rate
