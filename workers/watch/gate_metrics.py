"""The gauges about the gate: which steps wait, what failed, and how each experiment stands."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily

from babylon_tasks.records.experiments import Standing
from babylon_tasks.records.gates import Gate

_LABELS = ["lineage"]


def gate_metrics(gates: Iterable[Gate]) -> list[GaugeMetricFamily]:
    """Return the gauges of these lineages; those of an experiment only while one runs."""
    awaiting = _gauge("steps_awaiting_exam", "Steps that may not serve before their exam.")
    passed = _gauge("steps_passed", "Steps that passed their exam, and wait to serve.")
    failures = _gauge(
        "exam_failures_in_a_row",
        "Exams failed since one was passed or a person changed the lineage.",
    )
    paused = _gauge("paused_by_gate", "Whether the lineage rests since too many exams failed.")
    experiments = _ExperimentGauges()
    for gate in gates:
        awaiting.add_metric([gate.lineage], gate.gated and gate.awaits_exam is not None)
        passed.add_metric([gate.lineage], len(gate.passed))
        failures.add_metric([gate.lineage], gate.failures)
        paused.add_metric([gate.lineage], gate.paused_at is not None)
        experiments.add(gate)
    return [awaiting, passed, failures, paused, *experiments.families]


class _ExperimentGauges:
    """The gauges of running experiments; what is not known has no sample."""

    def __init__(self) -> None:
        described = {
            "step": "The step that an experiment gives a part of the agents.",
            "percent": "Percent of the agents that have it.",
            "windows": "Windows that the experiment has seen.",
            "windows_left": "Windows until it is decided, at this rate.",
            "difference": "What the step earns more a run than the one that serves.",
            "low": "Lower end of the 95 % interval of that difference.",
            "high": "Upper end of the 95 % interval of that difference.",
        }
        self._by_name = {
            name: _gauge(f"experiment_{name}", text) for name, text in described.items()
        }

    @property
    def families(self) -> list[GaugeMetricFamily]:
        return list(self._by_name.values())

    def add(self, gate: Gate) -> None:
        """Add the experiment of a lineage, if one runs."""
        running = gate.experiment
        if running is None:
            return
        standing = running.standing or Standing(0, 0, 0, None, None, None, None)
        values = {"step": running.step, "percent": running.percent}
        for name, gauge in self._by_name.items():
            value = values[name] if name in values else getattr(standing, name)
            if value is not None:
                gauge.add_metric([gate.lineage], value)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"babylon_{name}", text, labels=_LABELS)
