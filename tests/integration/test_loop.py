"""The closed loop, small: agents play, the trainer learns with the settings as shipped, and so on.

`benchmarks/recipe.py` is the experiment; this holds that the loop's end is better than its start.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("art")
pytest.importorskip("peft")

SEEDS = (11, 12)
WINDOWS = 6
LEAST_GAIN = 0.1  # of the way from the noise persona to the oracle


def looks(seed: int, model: Path, folder: Path) -> list[Any]:
    """Play the loop of a seed, and return a look before the first window and one after the last."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import loop
    import torch

    from babylon_tasks.training.recipe import hyperparameters_in_force

    torch.set_num_threads(1)
    world = loop.World(seed, loop.Rules(lure_hours=0))
    wanted = hyperparameters_in_force(loop.SETTINGS)
    played = loop.Loop(folder / str(seed), model, world, wanted, loop.TorchTrainer("cpu-0"))
    before = played.look(0)
    for number in range(WINDOWS):
        played.train(loop.samples_of(played.play(number), seed))
    return [before, played.look(WINDOWS)]


@pytest.mark.timeout(300)
def test_the_end_of_the_loop_is_better_than_its_start(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own: the loop sets the environment for all that it imports."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(looks, seed, tiny_model, tmp_path) for seed in SEEDS]
        played = [task.result() for task in tasks]
    gains = [after.gap_closed - before.gap_closed for before, after in played]
    assert fmean(gains) >= LEAST_GAIN, gains
    assert min(look.well_formed for seed in played for look in seed) >= 0.9
