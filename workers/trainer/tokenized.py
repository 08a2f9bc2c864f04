"""Trajectory groups as tokens, with ART's advantages and weights and with the end of each turn.

ART's own tokenizer leaves the end token of a recorded (dict) answer out, so a model trained on it
is never taught to stop; it also walks the whole vocabulary for every call. What is here is equal
to it otherwise, which a test proves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jinja2
from art.preprocessing.tokenize import TokenizedResult

from babylon_tasks.training import WindowShare
from workers.trainer.chat_format import ChatFormat


@dataclass
class TokenizedGroups:
    """The sequences of a step, one per call, and what was left out and why."""

    results: list[Any] = field(default_factory=list)  # art's TokenizedResult
    dropped: Counter[str] = field(default_factory=Counter)  # empty, too_long, template
    dropped_by_window: Counter[str] = field(default_factory=Counter)

    @property
    def context_tokens(self) -> int:
        """All tokens of the sequences."""
        return sum(len(result.token_ids) for result in self.results)

    def by_window(self) -> dict[str, WindowShare]:
        """What each window gave."""
        sequences: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for result in self.results:
            window_id = result.trajectory.metadata["window_id"]
            sequences[window_id] += 1
            tokens[window_id] += sum(result.assistant_mask)
        return {
            each: WindowShare(sequences[each], self.dropped_by_window[each], tokens[each])
            for each in {*sequences, *self.dropped_by_window}
        }

    @property
    def trainable_tokens(self) -> int:
        """Answer tokens, their end tokens included."""
        return sum(sum(result.assistant_mask) for result in self.results)


def tokenize_groups(
    chat: ChatFormat,
    groups: list[Any],
    max_sequence_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenizedGroups:
    """Tokenize every call of every trajectory that has an advantage.

    `on_progress` gets (groups done, groups in all). Calls that are empty or longer than
    `max_sequence_tokens` are left out and counted.
    """
    tokenized = TokenizedGroups()
    for done, group in enumerate(groups, start=1):
        for trajectory, advantage in zip(group, advantages(group), strict=True):
            if advantage == 0:
                continue
            dropped: Counter[str] = Counter()
            results = list(
                _tokenize_trajectory(chat, trajectory, advantage, max_sequence_tokens, dropped)
            )
            tokenized.dropped += dropped
            tokenized.dropped_by_window[trajectory.metadata["window_id"]] += dropped.total()
            weight = 1 / (sum(sum(result.assistant_mask) for result in results) + 1e-6)
            for result in results:
                result.weight = weight
                result.prompt_id = len(tokenized.results)  # its own: no prompt is shared
                tokenized.results.append(result)
        on_progress(done, len(groups))
    return tokenized


def advantages(group: Any) -> list[float]:
    """GRPO: each reward less the group's mean, over the group's deviation, as ART has it."""
    rewards = [trajectory.reward for trajectory in group]
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / (deviation + 1e-6) for reward in rewards]


def _tokenize_trajectory(
    chat: ChatFormat,
    trajectory: Any,
    advantage: float,
    max_sequence_tokens: int,
    dropped: Counter[str],
) -> Iterator[Any]:
    prompts, answers = [], []
    for messages in _histories(trajectory):
        try:
            prompt = chat.prompt(messages[:-1])
        except jinja2.TemplateError:
            dropped["template"] += 1
            continue
        prompts.append(prompt)
        answers.append(messages[-1]["content"])
    for prompt, prompt_ids, answer_ids in zip(
        prompts, chat.encode(prompts), chat.encode(answers), strict=True
    ):
        trained = [*answer_ids, *chat.end_ids]
        if not answer_ids:
            dropped["empty"] += 1
        elif len(prompt_ids) + len(trained) > max_sequence_tokens:
            dropped["too_long"] += 1
        else:
            yield _result(prompt, prompt_ids, trained, advantage, trajectory)


def _histories(trajectory: Any) -> Iterator[list[dict[str, Any]]]:
    if trajectory.messages_and_choices:
        yield trajectory.messages_and_choices
    for history in trajectory.additional_histories:
        yield history.messages_and_choices


def _result(
    prompt: str, prompt_ids: list[int], trained: list[int], advantage: float, trajectory: Any
) -> Any:
    length = len(prompt_ids) + len(trained)
    return TokenizedResult(
        advantage=advantage,
        chat=prompt,
        token_ids=[*prompt_ids, *trained],
        input_pos=list(range(length)),
        assistant_mask=[0] * len(prompt_ids) + [1] * len(trained),
        logprobs=[math.nan] * length,
        pixel_values=None,
        image_grid_thw=None,
        trajectory=trajectory,
        choice_offsets=[],
        extra_logprobs={},
        _tokenizer=None,
    )
