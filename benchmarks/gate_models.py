"""The base models of `gate.py`, each made here in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from experiment import BREAKS
from gate_world import WORDY, with_note
from real_model import teach_form

from babylon_tasks.simulation import tiny_model
from babylon_tasks.simulation.game import lessons
from babylon_tasks.simulation.game.hour import BROKEN
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.simulation.values import seeded

TINY, OTHER, WORDY_MODEL, BREAKER = "tiny", "other", "wordy", "breaker"
WITH_NOTE = 0.3  # share of long answers in what the wordy model was taught
_STEPS, _RATE = 60, 1e-3
_WORDY_STEPS, _WORDY_RATE = 160, 1e-3  # a whole sentence takes longer
_OTHER_SEED = 8


def make_models(folder: Path) -> None:
    """Make the models, unless they are there.

    `tiny` is that of the demo; `other` has its shapes, and other weights; `wordy` may say more than
    the action, and `breaker` may break its call.
    """
    tiny = make_tiny_model(folder / TINY)
    with patch.object(tiny_model, "_SEED", _OTHER_SEED):
        make_tiny_model(folder / OTHER)
    teach_form(tiny, folder / WORDY_MODEL, _wordy(), steps=_WORDY_STEPS, rate=_WORDY_RATE)
    teach_form(tiny, folder / BREAKER, _broken(), steps=_STEPS, rate=_RATE)


def _wordy() -> Iterator[lessons.Example]:
    rng = seeded("wordy")
    for asked, answer in lessons.form(1):
        yield asked, with_note(answer, WORDY[1]) if rng.random() < WITH_NOTE else answer


def _broken() -> Iterator[lessons.Example]:
    rng = seeded("broken calls")
    for asked, answer in lessons.form(1):
        yield asked, BROKEN if rng.random() < BREAKS else answer
