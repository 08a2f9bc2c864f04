"""Chooses the backends by the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings
from workers.serve.backend import Backend

if TYPE_CHECKING:  # needs aiohttp, which our own engine does not
    from workers.serve.vllm.process import VllmProcess

_VLLM_LOG = Path(".babylon/logs/vllm.log")


@dataclass(frozen=True, slots=True)
class Backends:
    """What can answer; `process` is the vLLM server that is ours to run."""

    all: Sequence[Backend]
    process: VllmProcess | None = None


def make_backends(settings: Settings, own: Lineage) -> Backends:
    """Return vLLM or our own engine, and W&B with its key.

    Raises:
        UserError: Packages are missing, or VLLM_PYTHON cannot be run.
    """
    chosen = _chosen(settings, own)
    if settings.wandb_api_key is None:
        return chosen
    return Backends([*chosen.all, _wandb(settings, alone=not chosen.all)], chosen.process)


def _chosen(settings: Settings, own: Lineage) -> Backends:
    if settings.vllm_urls:
        _require("serve", "aiohttp")
        from workers.serve.vllm.replica import replicas

        return Backends(replicas(settings))
    if settings.vllm_python:
        return _own_vllm(settings, own)
    if settings.trainer == "serverless" and settings.wandb_api_key is not None:
        return Backends([])
    _require("train", "torch", "transformers", "peft")
    from workers.serve.embedded.backend import EmbeddedBackend  # late: torch takes seconds

    return Backends([EmbeddedBackend()])


def _own_vllm(settings: Settings, own: Lineage) -> Backends:
    _require("serve", "aiohttp")
    from workers.serve.vllm.process import Served, VllmProcess
    from workers.serve.vllm.replica import Replica

    served = Served(own.base_model, own.base_revision, settings.lora_rank, settings.serve_adapters)
    process = VllmProcess(settings, served, _VLLM_LOG)
    return Backends([Replica(process.upstream(), settings.serve_adapters)], process)


def _wandb(settings: Settings, *, alone: bool) -> Backend:
    _require("serve", "aiohttp")
    from workers.serve.upstream import Upstream
    from workers.serve.wandb import Wandb

    url = settings.serverless_url.rstrip("/").removesuffix("/v1")
    upstream = Upstream(url, settings.wandb_api_key, "W&B", settings.serve_seconds)
    return Wandb(upstream, base_models=alone)


def _require(extra: str, *packages: str) -> None:
    missing = next((name for name in packages if find_spec(name) is None), None)
    if missing:
        other = "set VLLM_URLS, or " if extra == "train" else ""
        raise UserError(f"{missing} is not installed: {other}pip install 'babylon-tasks[{extra}]'")
