"""A step's files: a PEFT adapter, as vLLM loads it, and the optimizer's state beside it."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from babylon_tasks.errors import BadWeights, CheckpointUnreadable, UserError
from babylon_tasks.records.steps import StepRequest
from babylon_tasks.text import first_line, one_line
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.proof import write_proof

WEIGHTS = "adapter_model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "trainer_state.json"


def load(model: LanguageModel, optimizer: torch.optim.Optimizer, request: StepRequest) -> int:
    """Put the parent's adapter and optimizer state in place.

    Returns:
        The optimizer steps that led to the parent.

    Raises:
        CheckpointUnreadable: A file is missing, damaged, or of another architecture.
        UserError: LORA_RANK or LORA_ALPHA is not the parent's.
    """
    assert request.parent is not None
    parent = Path(request.parent)
    with _readable(parent):
        _check_shape(LoraConfig.from_pretrained(str(parent)), request)
        _load_weights(model, load_file(parent / WEIGHTS))
        # weights_only: a checkpoint is data, it must not be able to run code.
        saved = torch.load(parent / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        return int(json.loads((parent / STATE).read_text())["optimizer_steps"])


@contextlib.contextmanager
def policy(model: LanguageModel, checkpoint: str | None) -> Iterator[None]:
    """Make the model that of a step, or without a checkpoint the base model alone.

    Raises:
        CheckpointUnreadable: A file is missing or damaged.
        BadWeights: They are of another architecture.
    """
    if checkpoint is None:
        with model.as_base():
            yield
        return
    folder = Path(checkpoint)
    with _readable(folder):
        config = LoraConfig.from_pretrained(checkpoint)
        weights = load_file(folder / WEIGHTS)
    model.add_adapter(config.r, config.lora_alpha, seed=0)  # every weight of it is replaced
    try:
        _load_weights(model, weights)
    except (ValueError, RuntimeError) as error:
        raise BadWeights(
            f"the weights of {folder} do not fit {model.base_model}: {one_line(str(error), 200)}"
        ) from error
    yield


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError) as e:
        reason = first_line(e)
        raise CheckpointUnreadable(
            f"cannot read the checkpoint {folder} ({type(e).__name__}: {reason}): "
            "is CHECKPOINT_STORE the same on all GPU nodes?"
        ) from e


def _check_shape(config: Any, request: StepRequest) -> None:
    wanted = request.hyperparameters
    for name, theirs, ours in (
        ("LORA_RANK", config.r, wanted.lora_rank),
        ("LORA_ALPHA", config.lora_alpha, wanted.lora_alpha),
    ):
        if theirs != ours:
            raise UserError(
                f"{name} is {ours}, but {request.model_name} was trained with {theirs}: "
                f"set {name}={theirs}, or start a new MODEL_NAME"
            )


def _load_weights(model: LanguageModel, weights: dict[str, torch.Tensor]) -> None:
    expected = get_peft_model_state_dict(model.adapted, save_embedding_layers=False)
    if weights.keys() != expected.keys():
        raise ValueError("its layers are not those of BASE_MODEL")
    set_peft_model_state_dict(model.adapted, weights)


def save(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    request: StepRequest,
    optimizer_steps: int,
) -> None:
    """Write the files into the request's `output_dir`; running it twice writes the same.

    The random state is kept for whoever wants to look into a step: the next step does not need
    it, since each starts from its own seed.
    """
    output = Path(request.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.adapted.peft_config["default"])
    config.base_model_name_or_path = request.base_model
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set has no order
    config.save_pretrained(str(output))
    weights = get_peft_model_state_dict(model.adapted, save_embedding_layers=False)
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, output / WEIGHTS)
    torch.save(
        {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, output / OPTIMIZER
    )
    state = {"optimizer_steps": optimizer_steps, "seed": request.seed, "parent": request.parent}
    (output / STATE).write_text(json.dumps(state, indent=2) + "\n")
    write_proof(model, output)
