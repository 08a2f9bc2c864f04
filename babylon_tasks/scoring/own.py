"""What the lineage's own versions did in a window, and what of it they did badly.

What another model did badly is left out. What a version of the lineage did badly is not: it would
cost nothing then, and the next version would learn to fail where it expects a low score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from babylon_tasks.records.traces import Outcome
from babylon_tasks.records.versions import Versions

# A version's runs, its calls in them, and those of the calls that were done badly.
VersionCounts = dict[str, int]


class OwnVersions:
    """Tells the lineage's own versions from other models."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def claim(self, outcome: Outcome) -> Outcome:
        """Return the outcome with those bad calls alone that a version of the lineage answered.

        They train, so they no longer count as left out.
        """
        own = [call for call in outcome.badly if self._is_own(call.version)]
        left_out = Counter(outcome.left_out)
        left_out.subtract(call.reason for call in own)
        return replace(outcome, badly=own, left_out=+left_out)

    def did(self, outcome: Outcome) -> bool:
        """Tell whether the lineage's versions answered most of a run's calls.

        A call that names no version is another model's.
        """
        own = sum(n for version, n in outcome.answered.items() if self._is_own(version))
        return 2 * own > outcome.calls

    def count(self, outcomes: Iterable[Outcome]) -> dict[str, VersionCounts]:
        """Count by version: `runs`, `calls` answered in them, and `badly` done ones of the calls.

        All calls of a run that was done badly count as such. A run of two versions counts for both.
        """
        by_step: dict[int, Counter[str]] = {}
        for outcome in outcomes:
            calls: Counter[int] = Counter()
            badly: Counter[int] = Counter()
            for version, n in outcome.answered.items():
                step = self._versions.step_of(version)
                if step is not None:
                    calls[step] += n
            for call in outcome.badly:
                step = self._versions.step_of(call.version)
                if step is not None:
                    badly[step] += 1
            for step, n in calls.items():
                bad = n if outcome.floored else badly[step]
                by_step.setdefault(step, Counter()).update(runs=1, calls=n, badly=bad)
        return {self._versions.name_of(step): dict(by_step[step]) for step in sorted(by_step)}

    def _is_own(self, version: str) -> bool:
        return self._versions.step_of(version) is not None
