"""Write the rows into Babylon's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from babylon_tasks.simulation.records import Malformed, WindowRows
from babylon_tasks.store.queries import load

_SQL = load("demo")


@dataclass(frozen=True, slots=True)
class Summary:
    """What `write` has written, to compare the results of training with it."""

    good_windows: tuple[str, ...]
    agents: int
    trajectories: int  # rows of every kind
    malformed: Mapping[str, Malformed]  # by `trajectoryId`


def write(connection: psycopg.Connection[Any], windows: Iterable[WindowRows]) -> Summary:
    """Insert the rows into Babylon's own tables, one transaction a window.

    Writing the same rows twice changes nothing.
    """
    good_windows: list[str] = []
    agents: set[str] = set()
    trajectories = 0
    malformed: dict[str, Malformed] = {}
    for window in windows:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_SQL["insert_user"], map(asdict, window.agents))
            cursor.executemany(_SQL["insert_outcome"], map(asdict, window.outcomes))
            cursor.executemany(_SQL["insert_trajectory"], map(asdict, window.trajectories))
        if window.kind == "good":
            good_windows.append(window.window_id)
        agents |= {agent.id for agent in window.agents}
        trajectories += len(window.trajectories)
        malformed |= window.malformed
    return Summary(tuple(good_windows), len(agents), trajectories, malformed)
