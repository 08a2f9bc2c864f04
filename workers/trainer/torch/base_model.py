"""The base model's files: which revision they are, and how they are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from babylon_tasks.errors import UserError
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.fingerprint import fingerprint
from workers.trainer.torch.model_files import NO_CODE, check_base, unreadable, where
from workers.trainer.torch.out_of_memory import out_of_memory

# Noise in the forward pass would make the importance ratio of recorded answers noise too.
_DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def base_revision(base_model: str, wanted: str | None) -> str:
    """Return the revision of a base model's files: a hub id's commit, a folder's fingerprint.

    Where the model is kept in memory this is not asked again, so a folder that changes meanwhile is
    noticed when it is next loaded, and not before.

    Args:
        base_model: Hub id or folder.
        wanted: The revision that it must be; None: any, and of a hub id the branch `main`.

    Raises:
        UserError: It cannot be found, or is another one.
    """
    with _readable(base_model):
        if Path(base_model).is_dir():
            found = fingerprint(Path(base_model))
        else:
            # Where a folder was before, its fingerprint is no revision that the hub knows.
            commit = "main" if wanted is None or wanted.startswith("files:") else wanted
            config = AutoConfig.from_pretrained(base_model, revision=commit, **NO_CODE)
            found = str(config._commit_hash)
    if wanted not in (None, found):
        raise UserError(
            f"BASE_MODEL={base_model} is revision {found}, but the lineage is pinned to {wanted}: "
            "bring that revision back, or start a new lineage with this one"
        )
    return found


def load_base(
    base_model: str, revision: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[ChatFormat, Any]:
    """Load the tokenizer and the network of this revision; None: of the branch `main`.

    Raises:
        UserError: They cannot be loaded or trained, or do not fit the GPU.
    """
    chat, config = check_base(base_model, revision)
    options = where(base_model, revision)
    with _readable(base_model):
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        network, loaded = AutoModelForCausalLM.from_pretrained(
            base_model,
            config=config,
            dtype=dtype,
            attn_implementation=chat.facts.attention,
            device_map=str(device),  # straight to the GPU: a copy in RAM first may not fit
            adapter_kwargs=options,  # or it looks for an adapter on the branch main
            output_loading_info=True,
            **options,
            **NO_CODE,
        )
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            f"BASE_MODEL={base_model} has no weights for {missing[0]} ({len(missing)} are "
            "missing): choose a whole model that continues text (…ForCausalLM)"
        )
    return chat, network


@contextlib.contextmanager
def _readable(base_model: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # files of others may raise anything
        if out_of_memory(error):
            raise UserError(
                f"CUDA out of memory while loading BASE_MODEL={base_model}: use a smaller "
                "BASE_MODEL or a larger GPU; or let W&B's serverless training hold the model "
                "(docs/training.md)"
            ) from None
        if isinstance(error, torch.AcceleratorError):
            raise  # the GPU's fault, not the model's
        raise unreadable(base_model, error) from error
