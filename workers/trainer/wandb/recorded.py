"""Recorded calls as W&B takes them: an OpenAI `Choice` with the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from art.trajectories import History, Trajectory, TrajectoryGroup
from openai.types.chat import ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs

from babylon_tasks.records.steps import Call, Sample, WindowShare
from workers.trainer.samples import trajectory_groups

_BYTES_A_TOKEN = 4  # of a prompt, whose tokens are not recorded


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is sent of a step: a group a window, and what it amounts to."""

    groups: list[Any]
    shares: dict[str, WindowShare]


def recorded_groups(samples: list[Sample], max_sequence_tokens: int) -> Recorded:
    """One `art.TrajectoryGroup` per window; a window's samples stand together.

    Calls without log-probabilities are not in it, nor those longer than `max_sequence_tokens`: the
    response's tokens are counted, the prompt's estimated.
    """
    groups: list[Any] = []
    shares: dict[str, WindowShare] = {}
    for window in trajectory_groups(samples):
        window_id = window[0].window_id
        trajectories = []
        sequences = dropped = tokens = 0
        for sample in window:
            recorded = [call for call in sample.calls if call.logprobs is not None]
            calls = [call for call in recorded if _tokens(call) <= max_sequence_tokens]
            sequences += len(calls)
            dropped += len(recorded) - len(calls)
            tokens += sum(len(call.logprobs.token_ids) for call in calls if call.logprobs)
            if calls:
                histories = [[*call.prompt(), _choice(call)] for call in calls]
                tools = [call.shown_tools() for call in calls]
                trajectories.append(trajectory(sample, histories, tools))
        shares[window_id] = WindowShare(sequences, dropped, tokens)
        if trajectories:
            groups.append(TrajectoryGroup(trajectories))
    return Recorded(groups, shares)


def trajectory(
    sample: Sample, histories: Sequence[list[Any]], tools: Sequence[Any] = ()
) -> Trajectory:
    """ART's form of a sample, one history a call: what the agent saw, and no more."""
    first, *others = [
        History(messages_and_choices=history, tools=shown)
        for history, shown in zip_longest(histories or [[]], tools)
    ]
    return Trajectory(
        messages_and_choices=first.messages_and_choices,
        tools=first.tools,
        additional_histories=others,
        reward=sample.reward,
        metadata={"window_id": sample.window_id, "trajectory_id": sample.trajectory_id},
    )


def _tokens(call: Call) -> int:
    prompt = call.prompt_bytes() // _BYTES_A_TOKEN
    return prompt + (len(call.logprobs.token_ids) if call.logprobs else 0)


def _choice(call: Call) -> Choice:
    assert call.logprobs is not None
    tokens = zip(call.logprobs.token_ids, call.logprobs.values, strict=True)
    return Choice(
        index=0,
        finish_reason="length" if call.ended is False else "stop",
        message=ChatCompletionMessage(role="assistant", content=call.response),
        # Text that the tokenizer does not know would be read as the end of turn, silently.
        logprobs=ChoiceLogprobs(
            content=[
                ChatCompletionTokenLogprob(token=f"token_id:{id_}", logprob=value, top_logprobs=[])
                for id_, value in tokens
            ]
        ),
    )
