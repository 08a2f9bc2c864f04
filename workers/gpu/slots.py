"""Which GPU this pool process owns, and the trainer process that works on it."""

from __future__ import annotations

import functools

from billiard.process import current_process

from babylon_tasks.settings import load_settings
from workers.gpu.client import TrainerProcess
from workers.gpu.visible import visible_gpus


def slots() -> int:
    """Pool processes to run: one a GPU, or one on the CPU."""
    return max(1, len(_gpus()))


@functools.cache
def trainer() -> TrainerProcess:
    """This pool process's trainer; its process starts at the first step."""
    index = getattr(current_process(), "index", 0)
    return make_trainer(index % slots())


def make_trainer(slot: int) -> TrainerProcess:
    """A trainer for the GPU in `slot`, or for the CPU where there is none.

    While another model's trainer has that GPU, a free one will do.
    """
    settings = load_settings()
    gpus = _gpus()
    gpus = gpus[slot:] + gpus[:slot]
    return TrainerProcess(
        kind=settings.trainer,
        gpus=gpus,
        slot=gpus[0] if gpus else f"cpu-{slot}",
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.trainer_stall_seconds,
        idle_seconds=settings.trainer_idle_seconds,
        log_level=settings.log_level,
        wandb_api_key=settings.wandb_api_key if settings.trainer == "serverless" else None,
    )


def _gpus() -> list[str]:
    """Those that a trainer may use; W&B has its own."""
    return [] if load_settings().trainer == "serverless" else visible_gpus()
