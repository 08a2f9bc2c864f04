"""Writes what a step makes of a fixed text: a server proves by it that it answers as the step."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from babylon_tasks.errors import Final
from babylon_tasks.records.proofs import ANSWER, MOST_TOKENS, PROOF, SYSTEM, USER, Proof
from workers.trainer.torch.assistant_turn import PROBED_AT
from workers.trainer.torch.language_model import LanguageModel


@torch.no_grad()
def write_proof(model: LanguageModel, folder: Path) -> None:
    """Ask the adapter and the base model about the text; two passes of about 150 tokens.

    It takes no random number and changes no weight.

    Raises:
        Final: A log-probability is not finite.
    """
    tokens = _tokens(model)
    by_step = _logprobs(model, tokens)
    with model.as_base():
        by_base = _logprobs(model, tokens)
    try:
        proof = Proof(tuple(tokens[0].tolist()), by_step, by_base)
    except ValueError:
        raise Final(
            "the step left a model that gives a text no probability: lower LEARNING_RATE"
        ) from None
    (folder / PROOF).write_bytes(msgspec.json.encode(proof))


def _tokens(model: LanguageModel) -> torch.Tensor:
    """Return the text as the chat template writes it, as far as the model takes it; [1, T]."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    prompt = model.chat.prompt(messages, PROBED_AT)
    (token_ids,) = model.chat.encode([prompt + ANSWER])
    return torch.tensor([token_ids[: min(MOST_TOKENS, model.chat.facts.positions)]])


def _logprobs(model: LanguageModel, tokens: torch.Tensor) -> tuple[float, ...]:
    predicts = torch.ones(tokens.shape, dtype=torch.bool)
    predicts[:, -1] = False
    logprobs_n, _ = model.logprobs(tokens.to(model.device), predicts)
    return tuple(logprobs_n.clamp(max=0).tolist())
