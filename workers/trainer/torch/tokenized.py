"""Trajectory groups as tokens, with ART's advantages and weights and with the end of each turn.

ART's own tokenizer leaves the end token of a recorded (dict) answer out, so a model trained on it
is never taught to stop; it also walks the whole vocabulary for every call. What is here is equal
to it otherwise, which a test proves.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jinja2

from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Call, Logprobs, Sample, WindowShare
from babylon_tasks.records.windows import parse_window_id
from workers.trainer.torch.assistant_turn import NotTheSame, Turn
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
    dropped: Counter[str] = field(default_factory=Counter)  # calls; see `tokenize_samples`
    without_advantage: int = 0  # trajectories
    misfits: int = 0  # calls whose recorded log-probabilities are of other tokens than ours
    windows: dict[str, WindowShare] = field(default_factory=dict)  # by window id

    def mini_batches(self, windows_each: int) -> list[Sequences]:
        """Return the sequences in parts of so many whole windows, in order; 0: all in one.

        A window without a sequence does not count.
        """
        counts = [share.sequences for share in self.windows.values() if share.sequences]
        ends = [0, *itertools.accumulate(counts)]
        bounds = [*ends[: -1 : windows_each or len(ends)], ends[-1]]
        return [self.sequences.part(*pair) for pair in itertools.pairwise(bounds)]

    @property
    def windows_that_teach(self) -> int:
        """Windows of which there are sequences."""
        return sum(share.sequences > 0 for share in self.windows.values())

    def add(self, window_id: str, advantage: float, sample: TokenizedSample) -> None:
        """Append the calls of one trajectory, and count them."""
        tokens = sample.answer_tokens
        weight = 1 / (tokens + 1e-6)
        for call in sample.calls:
            self.sequences.add(call.prompt, call.answer, advantage, weight, call.logprobs or ())
            self.misfits += call.logprobs is None
        self.dropped += sample.dropped
        share = self.windows.get(window_id, WindowShare(0, 0, 0))
        self.windows[window_id] = WindowShare(
            share.sequences + len(sample.calls),
            share.dropped + sample.dropped.total(),
            share.trainable_tokens + tokens,
            share.refused + sample.dropped.total() - sample.dropped["too_long"],
        )


def tokenize_groups(
    chat: ChatFormat,
    groups: Sequence[Sequence[Sample]],
    max_sequence_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    by_deviation: bool = True,
) -> TokenizedGroups:
    """Tokenize every call of every trajectory that has an advantage.

    `on_progress` gets (trajectories done, trajectories in all). See `tokenize_samples`, and for
    `by_deviation` see `advantages`.
    """
    tokenized = TokenizedGroups()
    samples: list[Sample] = []
    advantage_of: list[float] = []
    for group in groups:
        for sample, advantage in zip(group, advantages(group, by_deviation), strict=True):
            if advantage == 0:
                tokenized.without_advantage += 1
                continue
            samples.append(sample)
            advantage_of.append(advantage)
    for number, one in enumerate(tokenize_samples(chat, samples, max_sequence_tokens)):
        tokenized.add(samples[number].window_id, advantage_of[number], one)
        on_progress(number + 1, len(samples))
    return tokenized


def advantages(group: Any, by_deviation: bool = True) -> list[float]:
    """GRPO: each reward less the group's mean, over the group's deviation, as ART has it.

    Without `by_deviation` they are not divided (Dr. GRPO): a group whose rewards hardly differ
    teaches less than others. All are 0 where the rewards cannot be told apart.
    """
    rewards = [trajectory.reward for trajectory in group]
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    # Not squares, as ART: those of tiny differences are 0, those of huge ones infinite.
    deviation = math.hypot(*(reward - mean for reward in rewards)) / math.sqrt(len(rewards))
    if not _EPSILON < deviation < math.inf:
        return [0.0] * len(rewards)
    scale = deviation + _EPSILON if by_deviation else 1.0
    return [(reward - mean) / scale for reward in rewards]


class TokenizedCall(NamedTuple):
    """Prompt and answer, the answer with its end; `logprobs` is None where they do not fit.

    An answer that was cut off is without its end.
    """

    prompt: list[int]
    answer: list[int]
    logprobs: Sequence[float] | None


@dataclass
class TokenizedSample:
    """The calls of one trajectory, and why others were left out."""

    calls: list[TokenizedCall] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # calls; see `tokenize_samples`

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers, their ends included."""
        return sum(len(call.answer) for call in self.calls)


def tokenize_samples(
    chat: ChatFormat, samples: Iterable[Sample], max_sequence_tokens: int
) -> Iterator[TokenizedSample]:
    """Tokenize every call of each sample, in order, some samples at a time.

    The template's clock is the window's hour, so that a step made again is the same. Calls are left
    out and counted that are empty, longer than `max_sequence_tokens` or than the model takes, that
    the template refuses or rewrites (`template`), whose text would become control tokens (`markup`)
    or tokens without an embedding (`vocabulary`). Recorded log-probabilities go with a call only
    where they are of exactly its tokens.

    Of calls that were done badly (`Call.ended`) an empty one is its end alone, and one that was cut
    off has no end, unless the recorded tokens say that the model wrote it.
    """
    waiting: list[_Turns] = []
    for sample in samples:
        waiting.append(_Turns.of(chat, sample))
        if sum(len(one.turns) for one in waiting) >= _CALLS_AT_ONCE:
            yield from _tokenize(chat, waiting, max_sequence_tokens)
            waiting = []
    yield from _tokenize(chat, waiting, max_sequence_tokens)


@dataclass
class _Turns:
    """The calls of one trajectory as the template writes them, and what was recorded of each."""

    turns: list[Turn] = field(default_factory=list)
    recorded: list[Call] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, chat: ChatFormat, sample: Sample) -> _Turns:
        found = cls()
        at = _start(sample.window_id)
        for call in sample.calls:
            try:
                turn = chat.turn(call.prompt(), call.response, at, call.shown_tools())
            except (jinja2.TemplateError, NotTheSame):
                found.dropped["template"] += 1
                continue
            if turn.answer or call.ended is True:
                found.turns.append(turn)
                found.recorded.append(call)
            else:
                found.dropped["empty"] += 1
        return found


def _start(window_id: str) -> datetime:
    """Return the hour that the agents saw; a fixed one for what is no hour."""
    try:
        return parse_window_id(window_id)
    except UserError:
        return datetime(2025, 1, 1, tzinfo=UTC)


def _tokenize(
    chat: ChatFormat, some: list[_Turns], max_sequence_tokens: int
) -> Iterator[TokenizedSample]:
    limit = min(max_sequence_tokens, chat.facts.positions)
    encoded = iter(chat.encode_turns([turn for one in some for turn in one.turns]))
    for one in some:
        tokenized = TokenizedSample(dropped=one.dropped)
        for recorded in one.recorded:
            call = next(encoded)
            if call is None:
                tokenized.dropped["markup"] += 1
            elif len(call.prompt) + len(call.trained) > limit:
                tokenized.dropped["too_long"] += 1
            elif len(call.trained) == len(chat.end_ids) and recorded.ended is not True:
                tokenized.dropped["empty"] += 1
            elif not chat.facts.knows([*call.prompt, *call.trained]):
                tokenized.dropped["vocabulary"] += 1
            else:
                answer_tokens = len(call.trained) - len(chat.end_ids)
                logprobs = _fitting(recorded.logprobs, answer_tokens, call.trained)
                trained = call.trained
                if recorded.ended is False and len(logprobs or ()) <= answer_tokens:
                    trained = trained[:answer_tokens]
                tokenized.calls.append(TokenizedCall(call.prompt, trained, logprobs))
        yield tokenized


def _fitting(
    recorded: Logprobs | None, answer_tokens: int, trained: list[int]
) -> Sequence[float] | None:
    """Return the values if they are of these tokens, with or without the end; else None."""
    if recorded is None:
        return ()
    count = len(recorded.token_ids)
    fits = answer_tokens <= count == len(recorded.values)
    return recorded.values if fits and [*recorded.token_ids] == trained[:count] else None
