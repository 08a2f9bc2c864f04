"""LoRA weights over a base model that stays as it is: each row of a batch has its own, or none.

peft holds one active adapter for a whole batch, and to add one it changes the modules of a network
that is generating. Here an adapter is a table of matrices that a row points to: it is loaded while
others answer, and forgotten with its last row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from babylon_tasks.text import first_line
from workers.serve.backend import CannotServe

WEIGHTS = "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Adapter(NamedTuple):
    """One version's weights by module: A [r, in], and B transposed and scaled [r, out].

    Adapters are told apart by being other objects, so none is ever taken for another.
    """

    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]


class Overlay:
    """Adds adapters to the linear layers of a network; `use` says which rows have which.

    `mixes` turns false where a layer sees no rows, but a mixture of tokens (an expert, say): then
    all rows must have one adapter.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.mixes = True
        self._rows = 0
        self._spans: list[tuple[int, int, Adapter]] = []
        self._shapes: dict[str, tuple[int, int]] = {}
        self._device = next(network.parameters()).device
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear | Conv1D):
                rows, columns = module.weight.shape
                linear = isinstance(module, torch.nn.Linear)
                self._shapes[name] = (columns, rows) if linear else (rows, columns)
                changed: Any = module
                changed.forward = functools.partial(self._forward, module.forward, name)

    def use(self, adapters: Sequence[Adapter | None]) -> None:
        """Choose the adapter of each row of the next forward passes; equal ones side by side."""
        self._rows = len(adapters)
        self._spans = []
        for row, adapter in enumerate(adapters):
            if self._spans and self._spans[-1][2] is adapter and self._spans[-1][1] == row:
                self._spans[-1] = (self._spans[-1][0], row + 1, adapter)
            elif adapter is not None:
                self._spans.append((row, row + 1, adapter))

    def _forward(self, base: Any, name: str, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = base(inputs)
        if inputs.ndim != 3 or len(inputs) != self._rows:
            self.mixes = False
        for begin, end, adapter in self._spans:
            if weights := adapter.layers.get(name):
                if end - begin == self._rows:
                    _add(inputs, out, *weights)
                elif self.mixes:
                    _add(inputs[begin:end], out[begin:end], *weights)
                else:
                    raise RuntimeError(f"{name} does not see the rows of a batch")
        return out

    def read(self, folder: Path) -> Adapter:
        """Read an adapter's files, as the trainer writes them.

        Raises:
            CannotServe: They are damaged, no plain LoRA, or made for another model.
        """
        try:
            if not (folder / WEIGHTS).is_file():
                raise CannotServe(f"{folder} holds no adapter: was it made by TRAINER=noop?")
            config = LoraConfig.from_pretrained(str(folder))
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = first_line(error)
            raise CannotServe(f"cannot read the checkpoint {folder}: {reason}") from error
        if not isinstance(config, LoraConfig) or config.rank_pattern or config.alpha_pattern:
            raise CannotServe(f"the adapter {folder} is no LoRA of one rank")
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        layers = {}
        for key in weights:
            if not key.startswith(_PREFIX) or not key.endswith((_A, _B)):
                raise CannotServe(f"the adapter {folder} has more than LoRA's matrices: {key}")
            name = key.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B)
            if name not in layers:
                down, up = weights.get(_PREFIX + name + _A), weights.get(_PREFIX + name + _B)
                self._check(folder, name, config.r, down, up)
                assert down is not None
                assert up is not None
                layers[name] = self._placed(down), self._placed(up.t()) * scale
        if not layers:
            raise CannotServe(f"the adapter {folder} changes no layer")
        return Adapter(layers)

    def _placed(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.to(self._device, torch.float32).contiguous()

    def _check(
        self,
        folder: Path,
        name: str,
        rank: int,
        down: torch.Tensor | None,
        up: torch.Tensor | None,
    ) -> None:
        shape = self._shapes.get(name)
        if shape is None:
            raise CannotServe(f"the adapter {folder} is of another model: it changes {name}")
        wide, out = shape
        if down is None or up is None or down.shape != (rank, wide) or up.shape != (out, rank):
            raise CannotServe(
                f"the adapter {folder} is of another rank or model: the weights of {name} are not "
                f"{rank} x {wide} and {out} x {rank}"
            )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise CannotServe(f"the adapter {folder} has weights that are not finite: {name}")


def _add(inputs: torch.Tensor, out: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
    """Add an adapter's part to the base's output, which nothing differentiates."""
    rows = inputs.flatten(0, -2)
    small = torch.nn.functional.linear(rows if rows.dtype == down.dtype else rows.float(), down)
    wide = out.view(-1, out.shape[-1])
    if out.dtype == up.dtype:
        wide.addmm_(small, up)
    else:  # a base model in bfloat16; the adapter stays in float32, as the trainer has it
        wide += (small @ up).to(out.dtype)
