"""What Flower's `/metrics` says about the pipeline, read from Postgres and Redis at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.settings import QUEUES, Settings
from babylon_tasks.store import canaries, heads, judgments
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Database
from workers import queues

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
        name = self._settings.model_name
        with self._database.transaction() as tx:
            states = window_rows.count_states(tx, name)
            answered = canaries.read(tx)
            head = heads.read(tx, name)
            spent = judgments.spent_today(tx)
        windows = GaugeMetricFamily("babylon_windows", "Windows in a state.", labels=["state"])
        for state, count in states.items():
            windows.add_metric([state], count)
        ages = GaugeMetricFamily(
            "babylon_canary_age_seconds",
            "Since a message last came through Redis, the queue and a worker to Postgres.",
            labels=["queue"],
        )
        for queue, canary in answered.items():
            ages.add_metric([queue], canary.age_seconds)
        step = GaugeMetricFamily(
            "babylon_step", "The newest step, and the one that serves.", labels=["which"]
        )
        step.add_metric(["newest"], head.step if head else 0)
        step.add_metric(["published"], head.published_step if head else 0)
        judge = GaugeMetricFamily(
            "babylon_judge_today", "What judges cost since 00:00 UTC, by unit.", labels=["unit"]
        )
        judge.add_metric(["answers"], spent.answers)
        judge.add_metric(["tokens"], spent.tokens)
        judge.add_metric(["usd"], spent.usd)
        return [windows, ages, step, judge]

    def _redis(self) -> list[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "babylon_queue_messages", "Messages that wait.", labels=["queue"]
        )
        with queues.redis_client() as client:
            for queue in QUEUES:
                waiting.add_metric([queue], queues.count(client, queue))
        return [waiting]
