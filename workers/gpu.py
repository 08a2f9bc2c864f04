"""Which GPU this pool process owns, and the trainer process that works on it."""

from __future__ import annotations

import functools
import os
import subprocess

from billiard.process import current_process

from babylon_tasks.settings import load_settings
from workers.trainer_client import TrainerProcess


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names (numbers, UUIDs, MIG ids), else every GPU's UUID."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def slots() -> int:
    """Pool processes to run: one a GPU, or one on the CPU."""
    return max(1, len(visible_gpus()))


@functools.cache
def trainer() -> TrainerProcess:
    """This pool process's trainer; its process starts at the first step."""
    index = getattr(current_process(), "index", 0)
    return make_trainer(index % slots())


def make_trainer(slot: int) -> TrainerProcess:
    """A trainer for the GPU in `slot`, or for the CPU where there is none."""
    settings = load_settings()
    gpus = visible_gpus()
    gpu = gpus[slot] if gpus else None
    return TrainerProcess(
        kind=settings.trainer,
        gpu=gpu,
        slot=gpu or f"cpu-{slot}",
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.trainer_stall_seconds,
        idle_seconds=settings.trainer_idle_seconds,
        log_level=settings.log_level,
    )
