"""Trajectory groups as tokens, with ART's advantages and weights and with the end of each turn.

ART's own tokenizer leaves the end token of a recorded (dict) answer out, so a model trained on it
is never taught to stop; it also walks the whole vocabulary for every call. What is here is equal
to it otherwise, which a test proves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2

from babylon_tasks.records.steps import Logprobs, Sample, WindowShare
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.sequences import Sequences

# What ART adds to a group's deviation. Where rewards differ less, it is not their deviation any
# more that scales an advantage, and what is left would be rounding noise, or underflow.
_EPSILON = 1e-6

_CALLS_AT_ONCE = 64  # enough for all cores, and a few dozen MB


@dataclass
class TokenizedGroups:
    """The sequences of a step, one per call, and what was left out and why."""

    sequences: Sequences = field(default_factory=Sequences)
    dropped: Counter[str] = field(default_factory=Counter)  # calls: empty, too_long, template
    without_advantage: int = 0  # trajectories
    misfits: int = 0  # calls whose recorded log-probabilities are of other tokens than ours
    windows: dict[str, WindowShare] = field(default_factory=dict)  # by window id

    def note(self, window_id: str, calls: int, dropped: Counter[str], tokens: int) -> None:
        """Count what one trajectory gave."""
        self.dropped += dropped
        share = self.windows.get(window_id, WindowShare(0, 0, 0))
        self.windows[window_id] = WindowShare(
            share.sequences + calls,
            share.dropped + dropped.total(),
            share.trainable_tokens + tokens,
        )


def tokenize_groups(
    chat: ChatFormat,
    groups: Sequence[Sequence[Sample]],
    max_sequence_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenizedGroups:
    """Tokenize every call of every trajectory that has an advantage, some trajectories at a time.

    `on_progress` gets (groups done, groups in all). Calls that are empty or longer than
    `max_sequence_tokens` are left out and counted. Recorded log-probabilities go with a call only
    where they are of exactly its tokens.
    """
    tokenized = TokenizedGroups()
    waiting: list[_Texts] = []
    for done, group in enumerate(groups, start=1):
        for sample, advantage in zip(group, advantages(group), strict=True):
            if advantage == 0:
                tokenized.without_advantage += 1
                continue
            waiting.append(_Texts.of(chat, sample, advantage))
            if sum(len(texts.prompts) for texts in waiting) >= _CALLS_AT_ONCE:
                _tokenize(chat, waiting, max_sequence_tokens, tokenized)
                waiting = []
        if done == len(groups):
            _tokenize(chat, waiting, max_sequence_tokens, tokenized)
        on_progress(done, len(groups))
    return tokenized


def advantages(group: Any) -> list[float]:
    """GRPO: each reward less the group's mean, over the group's deviation, as ART has it.

    All are 0 where the rewards cannot be told apart.
    """
    rewards = [trajectory.reward for trajectory in group]
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    # Not squares, as ART: those of tiny differences are 0, those of huge ones infinite.
    deviation = math.hypot(*(reward - mean for reward in rewards)) / math.sqrt(len(rewards))
    if not _EPSILON < deviation < math.inf:
        return [0.0] * len(rewards)
    return [(reward - mean) / (deviation + _EPSILON) for reward in rewards]


@dataclass
class _Texts:
    """The calls of one trajectory as the template writes them, and what was recorded of each."""

    window_id: str
    advantage: float
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    recorded: list[Logprobs | None] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, chat: ChatFormat, sample: Sample, advantage: float) -> _Texts:
        texts = cls(sample.window_id, advantage)
        for call in sample.calls:
            try:
                prompt = chat.prompt(call.prompt())
            except jinja2.TemplateError:
                texts.dropped["template"] += 1
                continue
            texts.prompts.append(prompt)
            texts.answers.append(call.response)
            texts.recorded.append(call.logprobs)
        return texts


class _Call(NamedTuple):
    """Prompt and answer, the answer with its end; `logprobs` is None where they do not fit."""

    prompt: list[int]
    answer: list[int]
    logprobs: Sequence[float] | None


def _tokenize(
    chat: ChatFormat, some: list[_Texts], max_sequence_tokens: int, tokenized: TokenizedGroups
) -> None:
    prompts = iter(chat.encode([prompt for texts in some for prompt in texts.prompts]))
    answers = iter(chat.encode([answer for texts in some for answer in texts.answers]))
    for texts in some:
        calls: list[_Call] = []
        for recorded in texts.recorded:
            prompt_ids, answer_ids = next(prompts), next(answers)
            trained = [*answer_ids, *chat.end_ids]
            if not answer_ids:
                texts.dropped["empty"] += 1
            elif len(prompt_ids) + len(trained) > max_sequence_tokens:
                texts.dropped["too_long"] += 1
            else:
                logprobs = _fitting(recorded, len(answer_ids), trained)
                calls.append(_Call(prompt_ids, trained, logprobs))
        tokens = sum(len(call.answer) for call in calls)
        weight = 1 / (tokens + 1e-6)
        for call in calls:
            tokenized.sequences.add(
                call.prompt, call.answer, texts.advantage, weight, call.logprobs or ()
            )
            tokenized.misfits += call.logprobs is None
        tokenized.note(texts.window_id, len(calls), texts.dropped, tokens)


def _fitting(
    recorded: Logprobs | None, answer_tokens: int, trained: list[int]
) -> Sequence[float] | None:
    """Return the values if they are of these tokens, with or without the end; else None."""
    if recorded is None:
        return ()
    count = len(recorded.token_ids)
    fits = answer_tokens <= count == len(recorded.values)
    return recorded.values if fits and [*recorded.token_ids] == trained[:count] else None
