"""What a judge is shown of a window: each run as text, and how the markets came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.scoring.judge import outcomes
from babylon_tasks.scoring.judge.client import ANSWER_TOKENS, Judge, Shown
from babylon_tasks.scoring.judge.condense import LEGEND, bare_tokens, condense
from babylon_tasks.scoring.scorer import Group

MOST_TOGETHER = 32  # more make a judge careless, however long its context
_WITH_WORDS_TOKENS = 2_000  # of 60 steps, with most of what the agent said
_MOST_TOKENS = 4_000  # for words; a judge reads no better for more
_LEAST_TOGETHER = 4  # fewer compare badly; rather the middle of a very long run is summarised


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A window, ready to be judged.

    `texts` are by trajectory id, of which `ranked` has the best guess first (the judge does not
    see it); at most `together` of them fit into one question after `context`.
    """

    window_id: str
    context: str
    ranked: Sequence[str]
    texts: Mapping[str, str]
    together: int

    def shown(self, members: Sequence[str]) -> list[Shown]:
        """Those of one question, in their order."""
        return [Shown(each, self.texts[each]) for each in members]


def prepare(group: Group, judge: Judge) -> Exhibit:
    """Condense a group, of at least one trajectory, so that questions fit the judge's context."""
    guesses = sorted(heuristic(group.outcomes), key=lambda score: -score.score)
    ranked = [score.trajectory_id for score in guesses]
    markets = outcomes.most_traded(group.markets, group.runs.values())
    names = outcomes.short_names(markets)
    context = f"{outcomes.tell(markets, names, judge.room(LEGEND) // 4)}\n\n{LEGEND}"
    needed = max(bare_tokens(group.runs[each], names) for each in ranked)
    together, tokens = _fit(len(ranked), judge.room(context), needed)
    texts = {each: condense(group.runs[each], tokens, names) for each in ranked}
    return Exhibit(group.window_id, context, ranked, texts, together)


def _fit(count: int, room: int, needed: int) -> tuple[int, int]:
    """How many of `count` trajectories share a question, and tokens for each of them.

    `needed` is what the longest takes with all its actions and none of its words.
    """
    fitting = room // (max(needed, _WITH_WORDS_TOKENS) + ANSWER_TOKENS)
    together = min(count, MOST_TOGETHER, max(_LEAST_TOGETHER, fitting))
    return together, min(max(needed, _MOST_TOKENS), room // together - ANSWER_TOKENS)
