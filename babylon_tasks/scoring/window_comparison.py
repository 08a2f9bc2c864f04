"""What differs between a window's stored scores and another scoring of it: records, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from babylon_tasks.records.scores import Score
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring.agreement import compare_pairs, ranks, spearman
from babylon_tasks.scoring.reading import ReadWindow
from babylon_tasks.scoring.verdict import Verdict
from babylon_tasks.store.scores import StoredScore

_MOST_MOVES = 5  # of a window


@dataclass(frozen=True, slots=True)
class Move:
    """A trajectory with another rank: 1 is the best, and equal scores share their mean rank."""

    window_id: str
    trajectory_id: str
    agent_id: str
    rank_before: float
    rank_after: float
    score_before: float
    score_after: float


@dataclass(frozen=True, slots=True)
class Differences:
    """Numbers of trajectories that cannot be compared.

    With a stored score: `deleted` since, `unreadable` now, `left_out_now` by a filter, `rewritten`
    since it was scored. Without one: `left_out_before`, or `written_since` the window was scored.
    """

    deleted: int
    unreadable: int
    left_out_now: int
    rewritten: int
    left_out_before: int
    written_since: int


@dataclass(frozen=True, slots=True)
class WindowComparison:
    """A window's stored scores, which are by `scorer`, beside those of another recipe.

    `compared` trajectories have both. Correlations are -1 to 1, None if all scores of a side are
    equal. `pairs_changed` is the share of pairs whose order is the opposite, None without a pair.
    `before` and `after` are `scored` or `skipped`, `before` is None for a window that is due again
    or failed; `why_skip` is the reason for `after`. `moves` has the largest, largest first.
    """

    window_id: str
    scorer: str
    compared: int
    spearman: float | None
    kendall: float | None
    pairs_changed: float | None
    before: State | None
    after: State
    why_skip: str | None
    differences: Differences
    moves: list[Move]


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over the `windows` that have the figure; None if none has."""

    mean: float | None
    windows: int


def mean(figures: Iterable[float | None]) -> Mean:
    """Return the mean of those figures that are not None."""
    numbers = [each for each in figures if each is not None]
    return Mean(fmean(numbers) if numbers else None, len(numbers))


def unmatched(stored: Mapping[str, StoredScore], read: ReadWindow) -> set[str]:
    """Return the trajectories with a stored score that were not read, and those without one."""
    scored_now = {outcome.trajectory_id for outcome in read.group.everything()}
    were_read = scored_now | read.unusable.keys() | read.filtered
    return (stored.keys() - were_read) | (scored_now - stored.keys())


def compare_scores(
    window: Window,
    stored: Mapping[str, StoredScore],
    read: ReadWindow,
    verdict: Verdict,
    later: Mapping[str, bool],
) -> WindowComparison:
    """Compare stored scores, by trajectory id, with a verdict on what was read of the window.

    Only trajectories with the same prompts and responses in both are compared. `later` has those of
    the `unmatched` trajectories that exist, and whether they were written since the scoring.
    """
    new = {score.trajectory_id: score for score in verdict.scores}
    same = sorted(
        each
        for each, score in new.items()
        if each in stored and stored[each].content_hash == score.content_hash
    )
    before = [stored[each].score for each in same]
    after = [new[each].score for each in same]
    pairs = compare_pairs(before, after)
    return WindowComparison(
        window_id=window.window_id,
        scorer=window.scorer or "",
        compared=len(same),
        spearman=spearman(before, after),
        kendall=pairs.kendall,
        pairs_changed=pairs.changed_share,
        before=_before(window.state),
        after=State.SKIPPED if verdict.why_skip else State.SCORED,
        why_skip=verdict.why_skip,
        differences=_differences(stored, read, later),
        moves=_moves(window.window_id, before, [new[each] for each in same]),
    )


def largest(moves: Iterable[Move], most: int) -> list[Move]:
    """Return the moves over the most ranks."""
    ordered = sorted(
        moves, key=lambda m: (-abs(m.rank_after - m.rank_before), m.window_id, m.trajectory_id)
    )
    return ordered[:most]


def _before(state: State) -> State | None:
    if state is State.SKIPPED:
        return State.SKIPPED
    return State.SCORED if state in (State.SCORED, State.TRAINED) else None


def _differences(
    stored: Mapping[str, StoredScore], read: ReadWindow, later: Mapping[str, bool]
) -> Differences:
    hashes = {outcome.trajectory_id: outcome.content_hash for outcome in read.group.everything()}
    unreadable = stored.keys() & read.unusable.keys()
    left_out = stored.keys() - hashes.keys() - unreadable
    deleted = left_out - read.filtered - later.keys()
    # A window that was too small to be scored left none of them out.
    new = hashes.keys() - stored.keys() if stored else set()
    written_since = {each for each in new if later.get(each)}
    return Differences(
        deleted=len(deleted),
        unreadable=len(unreadable),
        left_out_now=len(left_out - deleted),
        rewritten=sum(
            hashes[each] != stored[each].content_hash for each in hashes.keys() & stored.keys()
        ),
        left_out_before=len(new - written_since),
        written_since=len(written_since),
    )


def _moves(window_id: str, before: Sequence[float], after: Sequence[Score]) -> list[Move]:
    """Return the largest moves; `before` and `after` are in the same order."""
    ranks_before, ranks_after = ranks(before), ranks([score.score for score in after])
    moves = [
        Move(window_id, new.trajectory_id, new.agent_id, rank, rank_after, old, new.score)
        for old, new, rank, rank_after in zip(before, after, ranks_before, ranks_after, strict=True)
        if rank != rank_after
    ]
    return largest(moves, _MOST_MOVES)
