"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.serve.backend import Version
from workers.serve.health import Health
from workers.serve.http.gathered import Gathered

VERSIONS_KEPT = 32  # whose series stay; of those that answered longest ago they are removed
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ANSWERED = ("lineage", "version", "backend")


class Metrics:
    """Counts requests and answers in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._answers = Counter(
            "babylon_serve_requests",
            "Requests to a version, by the status they ended with; 499: the client left.",
            (*_ANSWERED, "status"),
            registry=self._registry,
        )
        self._errors = Counter(
            "babylon_serve_errors",
            "Requests that ended with an error, by its reason.",
            ("reason",),
            registry=self._registry,
        )
        self._first_token = Histogram(
            "babylon_serve_first_token_seconds",
            "Time to the first token of streamed answers.",
            _ANSWERED,
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._latency = Histogram(
            "babylon_serve_answer_seconds",
            "Time of whole answers.",
            _ANSWERED,
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._generated = Counter(
            "babylon_serve_generated_tokens",
            "Tokens of answers.",
            _ANSWERED,
            registry=self._registry,
        )
        self._prompted = Counter(
            "babylon_serve_prompt_tokens",
            "Tokens of prompts.",
            _ANSWERED,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "babylon_serve_in_flight", "Requests under way.", registry=self._registry
        )
        self._series: OrderedDict[Version, set[tuple[str, ...]]] = OrderedDict()

    def began(self) -> None:
        """Count a request under way."""
        self._in_flight.inc()

    def ended(self) -> None:
        """Count it no more."""
        self._in_flight.dec()

    def failed(self, reason: str) -> None:
        """Count an error: its code, or its status."""
        self._errors.labels(reason).inc()

    def answered(
        self, version: Version, backend: str, status: int, gathered: Gathered, streamed: bool
    ) -> None:
        """Count how a version was asked, and what came of it."""
        step = str(version.step)
        labels = (version.lineage, step, backend)
        self._remember(version, (*labels, str(status)))
        self._answers.labels(*labels, status).inc()
        self._generated.labels(*labels).inc(gathered.completion_tokens)
        self._prompted.labels(*labels).inc(gathered.prompt_tokens)
        if status == 200:
            self._latency.labels(*labels).observe(gathered.seconds())
            if streamed and gathered.first_token_seconds is not None:
                self._first_token.labels(*labels).observe(gathered.first_token_seconds)

    def _remember(self, version: Version, series: tuple[str, ...]) -> None:
        self._series.setdefault(version, set()).add(series)
        self._series.move_to_end(version)
        while len(self._series) > VERSIONS_KEPT:
            _, old = self._series.popitem(last=False)
            for labels in old:
                _remove(self._answers, labels)
            of_version = (self._first_token, self._latency, self._generated, self._prompted)
            for labels in {each[:3] for each in old}:
                for metric in of_version:
                    _remove(metric, labels)

    def watch(
        self,
        health: Callable[[], Health],
        captured: Callable[[], Mapping[str, int]],
        queued: Callable[[], int],
    ) -> None:
        """Show at each scrape the state, what became of answers to capture, and how many wait."""
        self._registry.register(_State(health, captured, queued))

    def text(self) -> bytes:
        """Return the page."""
        return generate_latest(self._registry)


def _remove(metric: Counter | Histogram, labels: tuple[str, ...]) -> None:
    with suppress(KeyError):  # of errors, not all series are made
        metric.remove(*labels)


class _State(Collector):
    def __init__(
        self,
        health: Callable[[], Health],
        captured: Callable[[], Mapping[str, int]],
        queued: Callable[[], int],
    ) -> None:
        self._health, self._captured, self._queued = health, captured, queued

    def collect(self) -> Iterator[Metric]:
        health = self._health()
        yield GaugeMetricFamily(
            "babylon_serve_ready",
            "Whether what the deployment's own lineage answers with is loaded.",
            int(health.ready),
        )
        promoted = GaugeMetricFamily(
            "babylon_serve_promoted_step",
            "Step that a lineage's name answers with.",
            labels=["lineage"],
        )
        for lineage, step in health.promoted.items():
            promoted.add_metric([lineage], step)
        yield promoted
        loaded = GaugeMetricFamily(
            "babylon_serve_versions_loaded", "Versions that a backend has.", labels=["backend"]
        )
        for backend, versions in health.loaded.items():
            loaded.add_metric([backend], len(versions))
        yield loaded
        yield GaugeMetricFamily(
            "babylon_serve_problems", "Things that are stale or away.", len(health.problems)
        )
        if health.postgres_seconds is not None:
            yield GaugeMetricFamily(
                "babylon_serve_postgres_seconds",
                "Seconds since Postgres was last read.",
                health.postgres_seconds,
            )
        yield CounterMetricFamily(
            "babylon_serve_promotions", "Promotions and rollbacks followed.", health.promotions
        )
        captured = CounterMetricFamily(
            "babylon_serve_captured",
            "Answers for rl.calls, by what became of them.",
            labels=["result"],
        )
        for result, count in self._captured().items():
            captured.add_metric([result], count)
        yield captured
        yield GaugeMetricFamily(
            "babylon_serve_capture_queued", "Answers that wait to be written.", self._queued()
        )
