"""What a judge is shown of a window: each run as text, and the markets' outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.scoring.judge import outcomes
from babylon_tasks.scoring.judge.client import ANSWER_TOKENS, Judge, Shown
from babylon_tasks.scoring.judge.condense import LEGEND, bare_tokens, condense
from babylon_tasks.scoring.scorer import Group

MOST_TOGETHER = 32  # with more a judge becomes careless, even if its context is long
_WITH_WORDS_TOKENS = 2_000  # of 60 steps, with most of what the agent said
_MOST_TOKENS = 4_000  # with the agent's words; more do not help a judge
_LEAST_TOGETHER = 4  # fewer compare badly; better to summarise the middle of a very long run


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A window, ready to be judged.

    `texts` are by trajectory id. `ranked` has the ids, best guess first; the judge does not see
    this order. At most `together` texts fit into one question after `context`.
    """

    window_id: str
    context: str
    ranked: Sequence[str]
    texts: Mapping[str, str]
    together: int

    def shown(self, members: Sequence[str]) -> list[Shown]:
        """Return the trajectories of one question, in the given order."""
        return [Shown(each, self.texts[each]) for each in members]


def prepare(group: Group, judge: Judge) -> Exhibit:
    """Condense a group of at least one trajectory, so that questions fit the judge's context."""
    guesses = sorted(heuristic(group.outcomes), key=lambda score: -score.score)
    ranked = [score.trajectory_id for score in guesses]
    markets = outcomes.most_traded(group.markets, group.runs.values())
    names = outcomes.short_names(markets)
    context = f"{outcomes.describe(markets, names, judge.room(LEGEND) // 4)}\n\n{LEGEND}"
    needed = max(bare_tokens(group.runs[each], names) for each in ranked)
    together, tokens = _fit(len(ranked), judge.room(context), needed)
    texts = {each: condense(group.runs[each], tokens, names) for each in ranked}
    return Exhibit(group.window_id, context, ranked, texts, together)


def _fit(count: int, room: int, needed: int) -> tuple[int, int]:
    """Return how many of `count` trajectories share a question, and the tokens for each.

    `needed`: the tokens of the longest run with all its actions and none of the agent's words.
    """
    fitting = room // (max(needed, _WITH_WORDS_TOKENS) + ANSWER_TOKENS)
    together = min(count, MOST_TOGETHER, max(_LEAST_TOGETHER, fitting))
    return together, min(max(needed, _MOST_TOKENS), room // together - ANSWER_TOKENS)
