"""What Flower's `/metrics` says about the pipeline, read from Postgres and Redis at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.settings import QUEUES, Settings
from babylon_tasks.store import canaries, gates, heads, judgments, lineages
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection, Database
from workers import queues
from workers.watch.gate_metrics import gate_metrics

log = logging.getLogger(__name__)

_SCRAPE_SECONDS = 5.0


class PipelineCollector(Collector):
    """Reads the figures at each scrape, and changes nothing.

    Where a server does not answer, its `babylon_up` is 0 and its other lines are left out.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.postgres(), timeout_seconds=_SCRAPE_SECONDS)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Describe nothing, so that registration asks no server."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the metrics, as of now."""
        up = GaugeMetricFamily("babylon_up", "Whether a server answers.", labels=["server"])
        for server, collect in (("postgres", self._postgres), ("redis", self._redis)):
            try:
                yield from collect()
                up.add_metric([server], 1)
            except ServerUnavailable:
                up.add_metric([server], 0)
            except UserError as error:  # migrations or rights are missing; the server is up
                log.warning("%s", error)
                up.add_metric([server], 1)
        yield up

    def _postgres(self) -> list[GaugeMetricFamily]:
        with self._database.transaction() as tx:
            names = self._lineages(tx)
            states = window_rows.count_states_of(tx, names)
            answered = canaries.read(tx)
            positions = heads.positions(tx, names)
            spent = judgments.spent_today(tx)
            gate_of = gates.read(tx, names)
        windows = GaugeMetricFamily(
            "babylon_windows", "Windows of a lineage in a state.", labels=["lineage", "state"]
        )
        for name, counts in states.items():
            for state, count in counts.items():
                windows.add_metric([name, state], count)
        ages = GaugeMetricFamily(
            "babylon_canary_age_seconds",
            "Since a message last came through Redis, the queue and a worker to Postgres.",
            labels=["queue"],
        )
        for queue, canary in answered.items():
            ages.add_metric([queue], canary.age_seconds)
        step = GaugeMetricFamily(
            "babylon_step",
            "The step of a lineage that trains next, and the one that serves.",
            labels=["lineage", "which"],
        )
        for name, position in positions.items():
            step.add_metric([name, "newest"], position.step)
            step.add_metric([name, "published"], position.published_step)
        judge = GaugeMetricFamily(
            "babylon_judge_today", "What judges cost since 00:00 UTC, by unit.", labels=["unit"]
        )
        judge.add_metric(["answers"], spent.answers)
        judge.add_metric(["tokens"], spent.tokens)
        judge.add_metric(["usd"], spent.usd)
        return [windows, ages, step, judge, *gate_metrics(gate_of.values())]

    def _lineages(self, tx: Connection) -> list[str]:
        """Return MODEL_NAME and every lineage that is not retired."""
        rows = [row.name for row in lineages.read(tx) if row.state != LineageState.RETIRED]
        return sorted({self._settings.model_name, *rows})

    def _redis(self) -> list[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "babylon_queue_messages", "Messages that wait.", labels=["queue"]
        )
        with queues.redis_client() as client:
            for queue in QUEUES:
                waiting.add_metric([queue], queues.count(client, queue))
        return [waiting]
