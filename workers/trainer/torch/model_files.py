"""A base model's files but for its weights: enough to say whether it can be trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from babylon_tasks.errors import UserError
from babylon_tasks.text import first_line, one_line
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.model_facts import ModelFacts

# Without it transformers asks on a terminal whether to run a repository's code: here, on a pipe.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}


def where(base_model: str, revision: str | None) -> dict[str, Any]:
    """Return transformers' options for this revision; None: of the branch `main`."""
    if Path(base_model).is_dir():
        return {"local_files_only": True}
    return {"revision": revision}


def check_base(base_model: str, revision: str | None) -> tuple[ChatFormat, Any]:
    """Read and check everything but the weights; return the chat format and the configuration.

    Raises:
        UserError: This model cannot be trained here.
    """
    options = where(base_model, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model, **options, **NO_CODE)
        config = AutoConfig.from_pretrained(base_model, **options, **NO_CODE)
        try:
            generation = GenerationConfig.from_pretrained(base_model, **options)
        except OSError:
            generation = None  # few old models have the file
        facts = ModelFacts.of(base_model, config, generation)
    except UserError:
        raise
    except Exception as error:  # files of others may raise anything
        raise unreadable(base_model, error) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"BASE_MODEL={base_model} ({config.model_type}) is no model that continues text: "
            "choose one (…ForCausalLM)"
        )
    return ChatFormat(tokenizer, base_model, facts), config


def unreadable(base_model: str, error: Exception) -> UserError:
    """Make the error that says why transformers cannot read a model."""
    if "trust_remote_code=True" in str(error):
        return UserError(
            f"BASE_MODEL={base_model} brings code of its own, which is not run here: choose a "
            "model that transformers knows"
        )
    return UserError(
        f"BASE_MODEL={base_model} cannot be loaded ({one_line(first_line(error), 200)}): "
        "name a folder with a transformers model, or a hub id this machine can reach"
    )
