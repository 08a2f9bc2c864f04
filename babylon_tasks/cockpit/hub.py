"""Whether Hugging Face's hub, or the cache of it on this machine, has a base model."""

from __future__ import annotations

import os
from pathlib import Path

import httpx

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings

_HUB = "https://huggingface.co"
_SECONDS = 5.0
_HERE = "name a folder, or fill the cache (HF_HOME) from a machine that has it"


def on_the_hub(settings: Settings) -> str:
    """Find a base model that is named as on the hub; nothing is downloaded.

    Raises:
        UserError: It is not in the cache, and the hub does not show it or cannot be reached.
    """
    model, revision = settings.base_model, settings.base_model_revision or "main"
    if is_cached(model):
        return f"{model}, in the cache of {_HUB}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            f"BASE_MODEL={model} is not on this machine, and HF_HUB_OFFLINE is set: {_HERE}"
        )
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
    token = os.environ.get("HF_TOKEN", "").strip()
    try:
        answer = httpx.head(
            f"{hub}/{model}/resolve/{revision}/config.json",
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UserError(
            f"BASE_MODEL={model} is not on this machine, and {_host(hub)} cannot be reached "
            f"({type(error).__name__}): {_HERE}"
        ) from None
    if answer.status_code >= 400:
        raise UserError(
            f"BASE_MODEL={model}: {_host(hub)} answers {answer.status_code} for it: check the "
            "name, or set HF_TOKEN to a token that may read it"
        )
    return f"{model}, from {_host(hub)}"


def is_cached(model: str) -> bool:
    """Tell whether the hub's cache on this machine has this model, where its own library looks."""
    variable = os.environ.get
    home = variable("HF_HOME") or Path(variable("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = variable("HF_HUB_CACHE") or variable("HUGGINGFACE_HUB_CACHE") or Path(home, "hub")
    folder = Path(cache).expanduser() / f"models--{model.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/config.json"))


def _host(url: str) -> str:
    return url.rpartition("@")[2].removeprefix("https://").removeprefix("http://")
