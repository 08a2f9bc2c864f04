"""The model in memory: a frozen base, its tokenizer, and a LoRA adapter on top.

Shapes: B rows, T positions, N trained tokens of a micro-batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.utils.checkpoint import checkpoint

from babylon_tasks.errors import UserError
from workers.trainer.torch.base_model import base_revision, load_base
from workers.trainer.torch.batches import to_device
from workers.trainer.torch.generator import Generator
from workers.trainer.torch.last_layer import ATTENTION, LastLayer
from workers.trainer.torch.lean_layers import use_lean_lora, use_lean_norms
from workers.trainer.torch.memory import release_memory

LOGIT_ROWS = 1024  # rows of float32 logits held at once: 0.6 GB at a vocabulary of 151,000

# On a CPU a larger micro-batch leaves the cache: at 16,384 tokens a step takes twice as long.
CPU_TOKENS = 4096

# From this length on, cuDNN's attention may be used: it is faster than the flash kernel, but makes
# a plan for every new shape, and short micro-batches have a shape each.
CUDNN_TOKENS = 8192


class LanguageModel:
    """A causal language model to train by LoRA.

    Args:
        base_model: Hub id or folder.
        device: Where it is held.
        dtype: Of the base; None: bfloat16 on CUDA, float32 elsewhere. The adapter is float32.
        revision: The base model must be this one; None: any will do.

    Raises:
        UserError: BASE_MODEL cannot be loaded, is another revision, does not fit the GPU, or has no
            chat template; or it is of a kind that cannot be trained here.
    """

    def __init__(
        self,
        base_model: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> None:
        self.base_model = base_model
        self.revision = base_revision(base_model, revision)
        self.device = device
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.chat, self.network = load_base(base_model, self.revision, device, dtype)
        self.generator = Generator(self.network, self.chat)
        self.network.config.use_cache = False
        self._last_layer: LastLayer | None = None
        self._check_network()
        if dtype == torch.float32 and self.chat.facts.attention == "sdpa":
            self._use_last_layer()
        if dtype == torch.bfloat16:
            use_lean_norms(self.network)
        self._check_head()
        self._adapted: Any = None
        self._adapter_shape: tuple[int, int] | None = None

    @property
    def adapted(self) -> Any:
        """The peft model of the step; `add_adapter` makes it."""
        if self._adapted is None:
            raise RuntimeError("add_adapter comes first")
        return self._adapted

    def add_adapter(self, rank: int, alpha: int, seed: int) -> None:
        """Put a fresh LoRA adapter on all linear layers, the head excepted; any other goes.

        Its weights follow from the seed alone; it changes nothing yet (B is zero).
        """
        if self._adapter_shape != (rank, alpha):
            self._wrap(rank, alpha)
        torch.manual_seed(seed)
        for module in self.adapted.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters("default", init_lora_weights=True)
        self.adapted.zero_grad(set_to_none=True)

    def _wrap(self, rank: int, alpha: int) -> None:
        """Make the adapter once: it takes most of a second with hundreds of layers."""
        if self._adapted is not None:
            self.network, self._adapted = self._adapted.unload(), None
            release_memory()
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapted: PeftModel = get_peft_model(self.network, config)
        adapted.train()  # gradient checkpointing asks for it; there is no dropout
        use_lean_lora(adapted)
        self._adapted, self._adapter_shape = adapted, (rank, alpha)

    @property
    def most_tokens_at_once(self) -> int:
        """Padded tokens in a micro-batch, beyond which this device gets slower."""
        return CPU_TOKENS if self.device.type == "cpu" else sys.maxsize

    def save_memory(self) -> bool:
        """Keep no activations but those between layers, from now on; False if it does already.

        The rest is computed again in the backward pass, which costs a third of a step.
        """
        if self.network.is_gradient_checkpointing:
            return False
        self._last_layer = None  # the layer would run again without knowing the positions
        self.network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        return True

    @property
    def hidden_size(self) -> int:
        """The size of its hidden states, H."""
        return int(self.network.config.get_text_config().hidden_size)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the adapter's weights, float32, in a fixed order."""
        return [p for p in self.adapted.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Use the model without an adapter: the reference of the KL penalty."""
        with self._adapted.disable_adapter() if self._adapted else contextlib.nullcontext():
            yield

    def logprobs(
        self, tokens: torch.Tensor, predicts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the trained tokens, and the entropies where they were chosen.

        Args:
            tokens: [B, T], on the device, padded on the right.
            predicts: [B, T], on the CPU, true where the next token is trained; never at T - 1.

        Returns:
            Two float32 tensors [N], in row order; the entropies carry no gradient. The head runs
            on these N positions only: a prompt's logits are never made.
        """
        # Padding is on the right and attention is causal, so no trained position sees any:
        # without a mask the fast kernels serve, and positions count from 0 in every row.
        positions_n = to_device(predicts.flatten().nonzero().squeeze(1), self.device)
        hidden_nh = self._hidden(tokens, predicts).flatten(0, 1).index_select(0, positions_n)
        targets_n = tokens.flatten()[positions_n + 1]
        parts = zip(
            torch.split(hidden_nh, LOGIT_ROWS), torch.split(targets_n, LOGIT_ROWS), strict=True
        )
        if hidden_nh.shape[0] > LOGIT_ROWS and torch.is_grad_enabled():
            # Logits are made again in the backward pass: N x V of them would not fit.
            done = [checkpoint(self._head, *part, use_reentrant=False) for part in parts]
        else:
            done = [self._head(*part) for part in parts]
        logprobs, entropies = zip(*done, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _hidden(self, tokens: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, H], right where `predicts` is true."""
        torch.backends.cuda.enable_cudnn_sdp(tokens.shape[1] >= CUDNN_TOKENS)
        only = self._last_layer.only(predicts) if self._last_layer else contextlib.nullcontext()
        with only:
            hidden: torch.Tensor = self._body()(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden

    def _head(
        self, hidden_nh: torch.Tensor, targets_n: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs_nv = torch.log_softmax(self._logits(hidden_nh).float(), dim=-1)
        with torch.no_grad():
            entropies_n = -(logprobs_nv.exp() * logprobs_nv).sum(dim=-1)
        return logprobs_nv.gather(1, targets_n[:, None]).squeeze(1), entropies_n

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network.get_output_embeddings()(hidden)
        cap = getattr(self.network.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _body(self) -> Any:
        return getattr(self.network, self.network.base_model_prefix)

    @torch.no_grad()
    def _probe(self, later: int = 0) -> torch.Tensor:
        """Return transformers' own logits of 8 tokens, [1, 8, V]; `later` changes the last 4."""
        tokens = self._few_tokens()
        tokens[:, 4:] += later
        logits: torch.Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits.float()

    def _few_tokens(self) -> torch.Tensor:
        return torch.arange(8, device=self.device)[None]

    def _check_network(self) -> None:
        """Refuse damaged weights, and an architecture that does more than continue text."""
        logits = self._probe()
        if not torch.isfinite(logits).all():
            raise UserError(
                f"BASE_MODEL={self.base_model}: what it computes is not finite: its weights are "
                "damaged, or not made for this precision; choose another"
            )
        if not self._same(self._probe(later=4)[:, :4], logits[:, :4]):
            raise UserError(
                f"BASE_MODEL={self.base_model}: {type(self.network).__name__} looks at what comes "
                "later; choose a model that continues text (…ForCausalLM)"
            )

    def _same(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        """Tell whether two ways to compute logits differ by rounding alone."""
        rounding = 1e-4 if self.network.dtype == torch.float32 else 0.05
        return bool((ours - theirs).abs().max() <= rounding * theirs.abs().max())

    def _use_last_layer(self) -> None:
        """Compute the last layer for trained positions only, where the architecture lets us."""
        theirs = self._probe()
        self.network.set_attn_implementation(ATTENTION)
        if self._same(self._probe(), theirs):
            self._last_layer = LastLayer(self._body())
        else:  # it looks at the name of the attention itself
            self.network.set_attn_implementation("sdpa")

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse an architecture that does more between hidden states and logits than we do."""
        tokens = self._few_tokens()
        predicts = torch.arange(8)[None] >= 6
        theirs = self._probe()[predicts]
        for last_layer in (self._last_layer, None):
            self._last_layer = last_layer  # an architecture may have one of another kind
            ours = self._logits(self._hidden(tokens, predicts))[predicts]
            if torch.allclose(ours.float(), theirs, rtol=0.02, atol=0.02):
                return
        raise UserError(
            f"BASE_MODEL={self.base_model}: the architecture {type(self.network).__name__} "
            "scales its logits in a way this trainer does not know; choose another"
        )
