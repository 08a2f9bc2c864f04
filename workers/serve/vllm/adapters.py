"""The admin half of a vLLM server: what it has, and how adapters come and go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

from babylon_tasks.records.proofs import Proof, doubt, doubt_of_base
from babylon_tasks.text import one_line
from workers.serve.backend import ApiError, BackendAway, CannotServe
from workers.serve.upstream import Failed, Upstream
from workers.serve.vllm.names import Adapter

LOOK_SECONDS = 5.0
_LOAD_SECONDS = 120.0  # of files on a slow disk
_PROOF_SECONDS = 120.0  # a server's first request compiles
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that `--max-lora-rank` takes
_RANK = re.compile(r"LoRA rank (\d+) is greater than max_lora_rank (\d+)")


class NameLost(BackendAway):
    """The server does not know an adapter's name any more: another endpoint took it away, say."""


class Card(msgspec.Struct, frozen=True):
    """A line of /v1/models: an adapter has a parent, its base model's name; `root` is a path."""

    id: str
    root: str | None = None
    parent: str | None = None


class _Cards(msgspec.Struct):
    data: list[Card]


class _Likely(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Likely] | None]


class _Completion(msgspec.Struct):
    choices: list[_Choice]


async def cards(upstream: Upstream) -> tuple[Card, Mapping[str, Card]]:
    """Return a server's base model, and its adapters by their names; its engine lives.

    Raises:
        ApiError: It does not answer, or says that its engine is dead.
        ValueError: It answers in another form, or has no base model.
    """
    await upstream.get("/health", LOOK_SECONDS)
    listed = msgspec.json.decode(await upstream.get("/v1/models", LOOK_SECONDS), type=_Cards).data
    base = next((card for card in listed if card.parent is None), None)
    if base is None:
        raise ValueError("no model without a parent")
    return base, {card.id: card for card in listed if card.parent is not None}


async def load(upstream: Upstream, adapter: Adapter) -> None:
    """Load an adapter under its name; nothing if it has that name already.

    Raises:
        CannotServe: vLLM does not see the files, was started for smaller adapters, or has another
            base model.
        BackendAway: It does not answer.
    """
    body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
    try:
        await upstream.post("/v1/load_lora_adapter", body, _LOAD_SECONDS)
    except ApiError as error:
        if isinstance(error, Failed):
            raise _unloadable(upstream, error) from error
        if isinstance(error, BackendAway):
            raise
        said = str(error)
        if "already been loaded" in said:
            return
        if "No adapter found" in said:
            told = (
                f"{upstream.name} does not find {adapter.folder}: where vLLM runs, "
                "CHECKPOINT_STORE must be there under the same path"
            )
        elif error.status in (404, 405):
            told = (
                f"{upstream.name} does not load adapters: start vLLM with --enable-lora, and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
            )
        else:
            told = f"{upstream.name} does not load {adapter.name}: {said}"
        raise CannotServe(told) from error


def _unloadable(upstream: Upstream, error: Failed) -> BackendAway | CannotServe:
    """Tell an adapter that vLLM cannot take from a server that does not work."""
    rank = _RANK.search(error.said)
    if rank:
        needed = next((size for size in RANKS if size >= int(rank[1])), rank[1])
        return CannotServe(
            f"{upstream.name} takes adapters of rank {rank[2]}, and this one has {rank[1]}: start "
            f"vLLM with --max-lora-rank {needed}"
        )
    if error.said.startswith("Call to add_lora method failed"):
        return CannotServe(
            f"{upstream.name} cannot load the adapter; is its base model the lineage's? It says: "
            + one_line(error.said, 300)
        )
    return error


async def unload(upstream: Upstream, name: str) -> None:
    """Take an adapter's name away; its weights stay in the engine until others need the room.

    Raises:
        ApiError: The server does not answer, or does not know the name.
    """
    await upstream.post("/v1/unload_lora_adapter", {"lora_name": name}, LOOK_SECONDS)


# By the tokens of a proof: the log-probabilities of a server's base model, once they were right.
BaseValues = dict[tuple[int, ...], list[float]]


async def doubt_of(
    upstream: Upstream, base: str, name: str, proof: Proof, known: BaseValues
) -> str | None:
    """Say why a server does not answer as the version under an adapter's name; None if it does.

    The base model is asked once: vLLM's CPU kernels take a row without an adapter for one of the
    last slot where others of the batch have one, so under load its base model is not itself.

    Raises:
        NameLost: It does not know the name.
        BackendAway: It does not answer.
    """
    try:
        by_base = known.get(proof.token_ids)
        if by_base is None:
            by_base = await _logprobs(upstream, base, proof.token_ids)
            if doubt_of_base(proof, by_base) is None:
                known[proof.token_ids] = by_base
        by_step = await _logprobs(upstream, name, proof.token_ids)
    except BackendAway:
        raise
    except ApiError as error:
        if error.status == 404:
            raise NameLost(f"{upstream.name} has lost the version") from error
        return f"it refuses to be asked: {error}"
    except (ValueError, KeyError) as error:
        return f"it gives no log-probabilities of a prompt ({one_line(str(error), 100)})"
    return doubt(proof, by_step, by_base)


async def _logprobs(upstream: Upstream, model: str, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of all tokens but the first.

    With `prompt_logprobs` vLLM reads nothing from its prefix cache.
    """
    body = {
        "model": model,
        "prompt": token_ids,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    answer = await upstream.post("/v1/completions", body, _PROOF_SECONDS)
    (choice,) = msgspec.convert(answer, _Completion).choices
    pairs = zip(token_ids[1:], choice.prompt_logprobs[1:], strict=True)
    return [(likely or {})[str(token_id)].logprob for token_id, likely in pairs]


def same_model(root: str | None, base_model: str) -> bool:
    """Tell whether vLLM's model looks like a lineage's: a hub id, a folder, or the hub's cache."""
    if not root or root == base_model:
        return root == base_model
    wanted = PurePosixPath(base_model)
    cached = "models--" + base_model.replace("/", "--")
    return wanted.name == PurePosixPath(root).name or cached in PurePosixPath(root).parts
