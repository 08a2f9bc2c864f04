"""The check of a judge: it is asked twice about the same trajectories, in opposite orders."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from babylon_tasks.errors import UserError
from babylon_tasks.scoring.agreement import spearman
from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.scoring.judge.client import Judge
from babylon_tasks.scoring.judge.groups import plan
from babylon_tasks.scoring.judge.prompt import prepare
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.work.aio import all_done


@dataclass(frozen=True, slots=True)
class Check:
    """What two answers in opposite orders say about a judge.

    Correlations are Spearman's, -1 to 1, None if all numbers of a side are equal.
    `self_consistency` is the correlation of the two answers; `largest_change` is the largest
    difference between a trajectory's two scores. `position_bias` is the mean score in the first
    half of a prompt minus that in the second half. Over both orders each trajectory is once in each
    half, so it is 0 for a judge who ignores the position.
    """

    window_id: str
    trajectories: int
    self_consistency: float | None
    largest_change: float
    position_bias: float
    agreement_with_heuristic: float | None
    agreement_with_pnl: float | None
    tokens: int
    usd: float | None


async def check(group: Group, judge: Judge) -> Check:
    """Ask twice about at least 3 trajectories, even if the answers were bought before.

    Of a large window only the first group is used.

    Raises:
        UserError: All trajectories look the same.
        JudgeUnavailable, JudgeFault: The judge gave no answer to check.
        ServerUnavailable: Postgres does not answer.
    """
    exhibit = prepare(group, judge)
    if len(set(exhibit.texts.values())) == 1:
        raise UserError(f"all trajectories of window {group.window_id} look the same to a judge")
    members = plan(exhibit.ranked, exhibit.together, seed=group.window_id)[0]
    forth, back = await all_done(
        judge.ask(exhibit.window_id, exhibit.shown(order), exhibit.context, again=True)
        for order in (members, members[::-1])
    )
    first = [forth[each].score for each in members]
    second = [back[each].score for each in members]
    half = len(members) // 2
    # A trajectory in the first half of one order is in the second half of the other.
    early = fmean([*first[:half], *second[-half:]])
    late = fmean([*first[-half:], *second[:half]])
    both = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    by_money = {score.trajectory_id: score.score for score in heuristic(group.outcomes)}
    pnl = {outcome.trajectory_id: outcome.pnl for outcome in group.outcomes}
    bill = judge.bought[group.window_id]
    return Check(
        window_id=group.window_id,
        trajectories=len(members),
        self_consistency=spearman(first, second),
        largest_change=max(abs(a - b) for a, b in zip(first, second, strict=True)),
        position_bias=early - late,
        agreement_with_heuristic=spearman(both, [by_money[each] for each in members]),
        agreement_with_pnl=spearman(both, [pnl[each] for each in members]),
        tokens=bill.tokens,
        usd=bill.usd,
    )
