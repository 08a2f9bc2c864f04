"""Filters of whole trajectories: which of them deserve training, and how many do not.

Other filters are elsewhere: SQL decides on `isTrainingData`, excluded scenarios and other agents;
`traces.decode` on unreadable traces and on calls that teach nothing. The filters here run before
any scorer, so that no judge is paid for a trajectory that is left out.

A run that is too short or failed is left out only if other models did it. One of the lineage's own
is kept and marked: it gets the lowest score.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from babylon_tasks.records.traces import Outcome
from babylon_tasks.settings import Settings

# The keys of `rl.windows.funnel`, from rows to trained tokens: each stage, and the reasons to leave
# something out before the next. The last ones are written when the window is trained.
STAGES: dict[str, tuple[str, ...]] = {
    "trajectories": (
        "unreadable", "few_actions", "failed_actions", "duplicate", "dropout", "over_maximum",
    ),
    "scored": ("exam_only", "gone", "without_calls"),
    "calls": (
        "empty", "no_prompt", "tool_call", "no_text", "odd_shape", "repeated", "truncated", "stale",
        "without_logprobs", "too_long", "template", "no_advantage",
    ),
    "sequences": (),
    "tokens": (),
}  # fmt: skip
# What of a stage was done badly by the lineage's own versions, and trains with the lowest score.
FLOORED = {"scored": "floored_runs", "calls": "floored_calls"}
# Rows with `isEvaluation` that got a score beside the window's own; they are in no other count.
EVALUATIONS = "evaluations"
# Of the calls whose trace lacks the version or the log-probabilities: those that the endpoint
# remembers, and the others. Both are missing where it remembers nothing at all.
REMEMBERED = ("captured", "uncaptured")


def apply(
    outcomes: Iterable[Outcome],
    settings: Settings,
    window_id: str,
    is_own: Callable[[Outcome], bool] = lambda outcome: False,
) -> tuple[list[Outcome], Counter[str]]:
    """Return the trajectories that deserve a score, and the count of the others by the reason.

    Those for which `is_own` is true are not left out as too short or failed, but returned with the
    reason in `Outcome.floored`. The random choice (DROPOUT, MAX_PER_WINDOW) depends on the ids
    alone, so that a window that is scored again keeps the same trajectories.
    """
    kept: list[Outcome] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for outcome in outcomes:
        content = (outcome.agent_id, outcome.content_hash)
        bad = _done_badly(outcome, settings)
        if bad and is_own(outcome):
            outcome, bad = replace(outcome, floored=bad[1]), None
        if bad:
            left_out[bad[0]] += 1
        elif outcome.calls and content in seen:
            left_out["duplicate"] += 1  # the same run, recorded twice
        else:
            seen.add(content)
            if settings.dropout and _draw(window_id, outcome.trajectory_id) < settings.dropout:
                left_out["dropout"] += 1
            else:
                kept.append(outcome)
    most = settings.max_per_window
    if most is not None and len(kept) > most:
        chosen = _choose(kept, most, window_id)
        left_out["over_maximum"] += len(kept) - most
        kept = [o for o in kept if o.trajectory_id in chosen]
    return kept, left_out


def _done_badly(outcome: Outcome, settings: Settings) -> tuple[str, str] | None:
    """Return why a run is to be left out, by its key and in words; None: it is fine."""
    if outcome.steps < settings.min_actions:
        return "few_actions", f"{outcome.steps} actions, MIN_ACTIONS is {settings.min_actions}"
    if outcome.failed / outcome.steps > settings.max_failed_share:
        return "failed_actions", f"{outcome.failed} of {outcome.steps} actions failed"
    return None


def _choose(outcomes: Sequence[Outcome], most: int, window_id: str) -> set[str]:
    """Draw trajectory ids at random, one of each agent in turn, to keep many agents."""
    drawn = sorted(outcomes, key=lambda o: _draw(window_id, "maximum", o.trajectory_id))
    turns: Counter[str] = Counter()
    places: list[
        tuple[int, int, str]
    ] = []  # the agent's turn, the order of the draw, trajectory id
    for outcome in drawn:
        places.append((turns[outcome.agent_id], len(places), outcome.trajectory_id))
        turns[outcome.agent_id] += 1
    return {trajectory_id for _, _, trajectory_id in sorted(places)[:most]}


def _draw(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
