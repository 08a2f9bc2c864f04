"""Work on micro-batches that begins again in less memory whenever it runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from babylon_tasks.errors import Final
from workers.trainer.torch.batches import micro_batches
from workers.trainer.torch.out_of_memory import out_of_memory

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class OneSequenceTooLarge(Final):
    """One sequence of so many tokens does not fit the GPU."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class Batches:
    """Row numbers in micro-batches; `rows` are those in work, for the one who catches."""

    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self._batches:
            self.rows = rows
            yield rows


def within_memory(
    lengths: Sequence[int],
    most_tokens: int,
    run: Callable[[Batches], _T],
    save_memory: Callable[[], bool] = lambda: False,
) -> _T:
    """Run over rows of these lengths, in batches of at most `most_tokens` padded tokens.

    When memory runs out it runs again from the start: as it was, if `save_memory` found a way to
    need less, else with half the micro-batch, down to one row.

    Raises:
        OneSequenceTooLarge: One row alone does not fit.
    """
    while True:
        batches = Batches(micro_batches(lengths, most_tokens))
        try:
            return run(batches)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside of the except clause: the exception's frames hold the tensors.
        release_memory()
        if save_memory():
            log.warning("out of memory: computing activations again from now on")
            continue
        rows = batches.rows
        longest = max((lengths[row] for row in rows), default=0)
        if len(rows) <= 1:
            raise OneSequenceTooLarge(longest)
        most_tokens = len(rows) * longest // 2
        log.warning("out of memory: trying micro-batches of %d tokens", most_tokens)


def release_memory() -> None:
    """Free what nobody refers to, cycles included, and give it back to the GPU.

    Networks and adapters are full of cycles, which Python would leave for later: it does not see
    how much of the GPU they hold.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
