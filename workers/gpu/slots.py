"""One slot a GPU: how many pool processes run, and which trainer each of them has."""

from __future__ import annotations

from billiard.process import current_process

from babylon_tasks.settings import Settings, load_settings
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.gpu.visible import visible_gpus


def count() -> int:
    """Count the pool processes to run: one a GPU, or one on the CPU."""
    return max(1, len(_gpus(load_settings())))


def own_trainer() -> TrainerProcess:
    """Make the trainer for the slot of the pool process that asks."""
    index = getattr(current_process(), "index", 0)
    return make_trainer(index % count())


def make_trainer(slot: int, settings: Settings | None = None) -> TrainerProcess:
    """Make a trainer for the GPU in `slot`, or for the CPU where there is no GPU.

    While another model's trainer has that GPU, this one takes another that is free. `settings` take
    the place of the process's own.
    """
    settings = settings or load_settings()
    gpus = _gpus(settings)
    gpus = gpus[slot:] + gpus[:slot]
    options = TrainerOptions(
        kind=settings.trainer,
        gpus=gpus,
        slot=gpus[0] if gpus else f"cpu-{slot}",
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.trainer_stall_seconds,
        idle_seconds=settings.trainer_idle_seconds,
        log_level=settings.log_level,
        log_format=settings.log_format,
        wandb_api_key=settings.wandb_api_key if settings.trainer == "serverless" else None,
    )
    return TrainerProcess(options)


def _gpus(settings: Settings) -> list[str]:
    """GPUs that a trainer may use; one that trains on W&B uses none here."""
    return [] if settings.trainer == "serverless" else visible_gpus()
