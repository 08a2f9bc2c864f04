"""What a window costs through all stages with one lineage and with many, at 64 claimers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from app_rows import load
from claimers import Crew, Turn
from own_server import Server, Usage, measured, run_server

from babylon_tasks import pipeline
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings
from babylon_tasks.store import lineages
from babylon_tasks.store.lineages import Stage
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet

PER_WINDOW = 8  # trajectories
PER_STEP = 16  # windows, as many as a scoring task claims
SLEEP_SECONDS: dict[Stage, float] = {"score": 0.001, "train": 0.01}
WEIGHTS = (1, 2, 4)
WEIGHED_TURNS = 420


def measure_claims(windows: int, many: int, claimers: int, rounds: int) -> dict[str, Any]:
    """Take the windows of one lineage and of many through the stages, a share of both a round."""
    with run_server() as server:
        traces = server.database("traces")
        load(traces, windows * PER_WINDOW, datetime.now(UTC), hours=windows + 1, bulk=True)
        alone, together = (Deployment(server, [1] * n, windows, claimers) for n in (1, many))
        for number in range(rounds):
            for each in (alone, together):
                each.work(windows - windows * (number + 1) // rounds)
        pairs = zip(alone.rounds, together.rounds, strict=True)
        growths = [theirs / own for own, theirs in pairs]
        return {
            "windows": windows,
            "claimers": claimers,
            "one_lineage": alone.close(),
            f"{many}_lineages": together.close(),
            "shares_by_weight": shares_by_weight(server),
            "growth_of_rounds": [round(growth, 2) for growth in growths],
            "growth_lineages": round(statistics.median(growths), 2),
        }


class Deployment:
    """A database with lineages and their due windows, and a crew of claimers."""

    def __init__(
        self, server: Server, weights: Sequence[float], windows: int, claimers: int
    ) -> None:
        self._server = server
        self._url = server.database(f"of_{len(weights)}", template="traces")
        settings = server.settings(
            self._url,
            # Not validated: one lineage alone looks back longer than a deployment may.
            lookback_hours=windows // len(weights),
            model_name=name_of(0),
            primary=False,
        )
        make_lineages(settings, weights)
        self._usage: dict[str, Usage] = {"produce": Usage(), "score": Usage(), "train": Usage()}
        self._client_cpu_seconds: Counter[str] = Counter()
        self.rounds: list[float] = []  # CPU milliseconds a window, through scoring and training
        fleet = Fleet.of_deployment(settings, "producer")
        contexts = fleet.active()
        with measured(self._usage["produce"], self._url, server.pid):
            made = len(pipeline.produce(*contexts))
        fleet.database.close()
        assert made == windows, made
        self._windows = windows
        self._crew = Crew(settings, claimers, SLEEP_SECONDS)

    def work(self, down_to: int) -> None:
        """Score until only so many windows are due, and train those that are scored."""
        ms_a_window = 0.0
        stages: tuple[tuple[Stage, int], ...] = (("score", down_to), ("train", 0))
        for stage, until in stages:
            with psycopg.connect(self._url) as connection:
                connection.execute(
                    "UPDATE rl.windows SET may_share = %s WHERE state = 'scored'", [PER_STEP]
                )
            usage, client = Usage(), self._crew.cpu_seconds()
            with measured(usage, self._url, self._server.pid):
                moved = self._crew.work(stage, until)
            client = self._crew.cpu_seconds() - client
            ms_a_window += (usage.server_cpu_seconds + client) / moved * 1000
            self._client_cpu_seconds[stage] += client
            self._usage[stage].add(usage)
        self.rounds.append(ms_a_window)

    def close(self) -> dict[str, dict[str, Any]]:
        """End the claimers; return what each stage has used."""
        turns = self._crew.close()
        return {stage: self._figures(stage, turns) for stage in self._usage}

    def _figures(self, stage: str, turns: Sequence[Turn]) -> dict[str, Any]:
        usage, windows = self._usage[stage], self._windows
        own = [turn for turn in turns if turn.stage == stage]
        figures = {
            "seconds": round(usage.seconds, 1),
            "windows_a_second": round(windows / usage.seconds, 1),
            "server_ms_a_window": round(usage.server_cpu_seconds / windows * 1000, 3),
        }
        if own:
            counts = turns_while_all_waited(own).values()
            figures |= {
                "claims_a_second": round(len(own) / usage.seconds, 1),
                "client_ms_a_window": round(self._client_cpu_seconds[stage] / windows * 1000, 3),
                "transactions_a_window": round(usage.transactions / windows, 2),
                "lock_waits": round(usage.lock_waits, 4),
                "deadlocks": usage.deadlocks,
                "turns": [min(counts), max(counts)],
            }
        return figures


def turns_while_all_waited(turns: Sequence[Turn]) -> Counter[str]:
    """Count each lineage's turns until one of them had its last."""
    last = {turn.lineage: turn.at for turn in turns}
    until = min(last.values())
    counts = Counter(turn.lineage for turn in turns if turn.at <= until)
    return Counter({name: counts[name] for name in last})


def shares_by_weight(server: Server) -> dict[int, float]:
    """Return the share of the turns of lineages that wait all the time, by weight."""
    url = server.database("weighed")
    settings = server.settings(url, model_name=name_of(0), primary=False)
    make_lineages(settings, WEIGHTS)
    with psycopg.connect(url) as connection:
        connection.execute(
            """INSERT INTO rl.windows (window_id, model_name, state)
               SELECT '2025-01-15T10:00', name, 'due' FROM rl.lineages"""
        )
    fleet = Fleet.of_deployment(settings, "benchmark")
    turns = Counter(next(fleet.in_turn("score")).lineage.name for _ in range(WEIGHED_TURNS))
    fleet.database.close()
    return {w: round(turns[name_of(n)] / WEIGHED_TURNS, 3) for n, w in enumerate(WEIGHTS)}


def make_lineages(settings: Settings, weights: Sequence[float]) -> None:
    """Make a lineage of each weight, as `babylon lineages create` does."""
    context = Context.of_deployment(settings, "benchmark")
    with context.database.transaction() as tx:
        for number, weight in enumerate(weights):
            config = {"LINEAGE_WEIGHT": str(weight)}
            new = Lineage(name_of(number), "none", False, config=config, created_by="benchmark")
            lineages.create(tx, new)
    context.database.close()


def name_of(number: int) -> str:
    """Return the name of a lineage."""
    return f"lineage-{number:03}"
