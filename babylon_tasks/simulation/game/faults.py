"""Rows that a deployment must survive, around the first hour of a game."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timedelta

from babylon_tasks.simulation.records import WindowRows
from babylon_tasks.simulation.simulate import simulate

_AGENTS = 3
_BACK = 2  # `simulate`'s newest good window is so many hours before its `now`


def faulty_rows(first: datetime, seed: int) -> Iterator[WindowRows]:
    """Yield an hour with too few agents, one without signal, and broken rows in the first hour.

    `first` is the start of the game's first hour (naive UTC). Of its rows, every kind that is set
    aside and every kind that never counts are there once; what the game's agents do is not.
    """
    # Another seed than the game's: ids are made of it and of the hour.
    for rows in simulate(1, _AGENTS, seed + 1, first + timedelta(hours=_BACK)):
        if rows.kind == "good":
            kept = {*rows.malformed, *rows.never_counts}
            trajectories = tuple(t for t in rows.trajectories if t.trajectory_id in kept)
            yield dataclasses.replace(rows, trajectories=trajectories, outcomes=(), odd={})
        elif rows.kind != "unfinished":
            yield rows
