"""What `babylon doctor` looks at on this machine: settings, packages, folders, GPUs.

The checks of the trainer and of the judge are the workers' own, and are passed in.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from babylon_tasks.cockpit.hub import on_the_hub
from babylon_tasks.errors import UserError
from babylon_tasks.records.scores import JUDGED
from babylon_tasks.scoring.judge import ruler_call
from babylon_tasks.settings import Settings

Require = Callable[[Settings], None]  # raises UserError where something is missing


def permission(settings: Settings) -> str:
    """Check that training is allowed.

    Raises:
        UserError: It is not.
    """
    settings.require_training_allowed()
    return "TRAIN_RL_LOCAL=true"


def trainer(settings: Settings, require_trainer: Require) -> str:
    """Check that the trainer's packages are installed, or that W&B can train.

    Raises:
        UserError: A package is missing, or W&B would refuse.
    """
    require_trainer(settings)
    return settings.trainer


def scoring(settings: Settings, require_judge: Require) -> str:
    """Check that the judge can be asked, and say what it costs.

    Raises:
        UserError: It cannot be asked, or a daily limit needs its price and that is not known.
    """
    require_judge(settings)
    if settings.scoring not in JUDGED:
        return settings.scoring
    ruler_call.require_key(settings)
    price = ruler_call.price(settings)
    if price is None:
        if settings.judge_daily_usd is not None:
            raise UserError(ruler_call.no_price(settings))
        return f"{settings.scoring} by {settings.judge_model}, price not known"
    return (
        f"{settings.scoring} by {settings.judge_model}, ${1e6 * price.input:g} and "
        f"${1e6 * price.output:g} for a million tokens in and out"
    )


def base_model(settings: Settings) -> str:
    """Look for BASE_MODEL in its folder, in Hugging Face's cache, or on the hub.

    Raises:
        UserError: It looks like a path and no model is there, or the hub cannot be asked for it.
    """
    folder = Path(settings.base_model)
    looks_local = settings.base_model.startswith((".", "/", "~"))
    if looks_local and not (folder / "config.json").is_file():
        raise UserError(f"BASE_MODEL={settings.base_model} is no model folder (no config.json)")
    return settings.base_model if folder.exists() else on_the_hub(settings)


def checkpoint_store(settings: Settings) -> str:
    """Check that checkpoints can be written, and say how much space is free.

    Raises:
        UserError: CHECKPOINT_STORE is not writable, or the package for S3 is missing.
    """
    store = settings.checkpoint_store
    if "://" in store:
        if importlib.util.find_spec("s3fs") is None and store.startswith("s3://"):
            raise UserError("S3 support is not installed: pip install 'babylon-tasks[s3]'")
        return store
    folder = Path(store).resolve()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"CHECKPOINT_STORE={folder} is not writable: {error.strerror} ({existing})"
        ) from None
    return f"{folder}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free"


def gpus(visible: Sequence[str], installed: Sequence[str] | None) -> str:
    """Describe the GPUs; `installed` has a line for each of the machine, None without a driver.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES names some, and the driver does not say whether they exist.
    """
    if not visible:
        return "none: one slot on the CPU"
    if installed is None:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES names {', '.join(visible)}, and `nvidia-smi -L` does not say "
            "whether this machine has them: is NVIDIA's driver installed? For the CPU, unset it"
        )
    return f"{len(visible)} visible; {'; '.join(installed)}"
