"""Adds an adapter to its base model: weights that need no PEFT."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from babylon_tasks.checkpoints.export import ADAPTER_FILES
from babylon_tasks.errors import UserError
from babylon_tasks.text import first_line, one_line
from workers.trainer.torch.base_model import base_revision
from workers.trainer.torch.model_files import NO_CODE, where


def merge_adapter(base_model: str, adapter: Path, folder: Path, wanted: str | None = None) -> None:
    """Write base model plus adapter, and the tokenizer, into an existing folder.

    With `wanted`, only that revision of the base model will do.

    On the CPU and in the base model's own type, so a GPU that trains is left alone; the sum is
    rounded to that type. The whole base model must fit into memory.

    Raises:
        UserError: The base model or the adapter cannot be loaded, or they do not fit each other,
            or transformers refuses to save them.
        OSError: The folder cannot be written.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    options = where(base_model, base_revision(base_model, wanted))
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model, **options, **NO_CODE)
        network = AutoModelForCausalLM.from_pretrained(
            base_model, dtype="auto", adapter_kwargs=options, **options, **NO_CODE
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"the base model {base_model} cannot be loaded ({first_line(error)}): it must be "
            "the folder or hub id that the lineage was started from"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of missing layers: see below
            adapted = PeftModel.from_pretrained(network, str(adapter), torch_device="cpu")
        _check_layers(adapted, adapter)
        with torch.inference_mode():
            merged = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the adapter does not fit the base model {base_model}: {first_line(error)}"
        ) from error
    try:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):  # which safetensors makes for its owner alone
            shutil.copymode(folder / "config.json", weights)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(first_line(error)) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{base_model} cannot be saved: {one_line(str(error), 500)}") from error


def _check_layers(adapted: Any, adapter: Path) -> None:
    """Where layers are missing peft only warns, and leaves the base model as it is."""
    with safe_open(adapter / ADAPTER_FILES[0], "pt") as weights:
        theirs = set(weights.keys())
    if theirs != set(get_peft_model_state_dict(adapted, save_embedding_layers=False)):
        raise ValueError("its layers are not those of the base model")
