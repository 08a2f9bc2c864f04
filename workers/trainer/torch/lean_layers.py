"""The same layers with fewer passes over memory: peft's LoRA and transformers' RMSNorm.

peft casts each layer's input to the adapter's float32 and back, scales the adapter's output and
then adds it: four more passes over activations, of which autograd keeps a copy for each layer. Here
the small weights are cast instead, and the last product adds into the base's output. RMSNorm
becomes torch's own, which on CUDA is one kernel in place of seven.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from peft.tuners.lora import Linear


def use_lean_lora(adapted: torch.nn.Module) -> None:
    """For the adapter `default` on linear layers, without dropout, as `LanguageModel` makes it."""
    for module in adapted.modules():
        if isinstance(module, Linear):
            module.forward = functools.partial(_lora, module)


def _lora(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    rows = inputs.flatten(0, -2)
    out: torch.Tensor = layer.base_layer(rows)
    if not layer.disable_adapters:
        small = torch.nn.functional.linear(rows, layer.lora_A["default"].weight.to(rows.dtype))
        wide = layer.lora_B["default"].weight.to(rows.dtype)
        # In place: the backward pass of the frozen layer does not read its output.
        out = out.addmm_(small, wide.t(), alpha=layer.scaling["default"])
    return out.view(*inputs.shape[:-1], -1)


def use_lean_norms(network: torch.nn.Module) -> None:
    """Wherever torch's RMSNorm gives what the module's own gives (Gemma's, say, is another)."""
    module: Any
    for module in network.modules():
        if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
            continue
        weight: Any = module.weight
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(4, weight.numel(), generator=generator).to(weight)
        with torch.no_grad():
            if torch.allclose(_norm(module, some), module(some), rtol=0.02, atol=0.02):
                module.forward = functools.partial(_norm, module)


def _norm(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    return torch.nn.functional.rms_norm(inputs, weight.shape, weight, module.variance_epsilon)
