"""The samples of a step: read from their file, made into ART's trajectory groups."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import art
import msgspec
from art.trajectories import History

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Call, Logprobs, Sample

_decoder = msgspec.json.Decoder(Sample)


def read_samples(path: str) -> list[Sample]:
    """All samples of the file, in order.

    Lone surrogates, which no tokenizer accepts, become U+FFFD.

    Raises:
        Final: A line is not a sample.
    """
    samples = []
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                samples.append(_read_sample(line, number))
    return samples


def _read_sample(line: bytes, number: int) -> Sample:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # msgspec refuses lone surrogates; the standard library reads them
    try:
        loose = json.loads(line.decode("utf-8", errors="replace"))
        return msgspec.convert(_without_surrogates(loose), Sample)
    except (ValueError, RecursionError) as error:
        raise Final(f"line {number} of the samples file is not a sample: {error}") from error


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}
    return value


def trajectory_groups(samples: list[Sample]) -> list[Any]:
    """One `art.TrajectoryGroup` per window; a window's samples stand together."""
    return [
        art.TrajectoryGroup(
            trajectory(sample, [_messages(call) for call in sample.calls]) for sample in window
        )
        for _, window in itertools.groupby(samples, key=lambda sample: sample.window_id)
    ]


def recorded_logprobs(samples: list[Sample]) -> dict[str, list[Logprobs | None]]:
    """By trajectory id, those of each call; a trajectory without any is left out.

    Beside ART's trajectories, not in them: its `Choice` costs a thousand bytes a token.
    """
    return {
        sample.trajectory_id: [call.logprobs for call in sample.calls]
        for sample in samples
        if any(call.logprobs for call in sample.calls)
    }


def trajectory(sample: Sample, histories: Sequence[list[Any]]) -> Any:
    """One history a call: the model is trained on exactly what the agent saw."""
    return art.Trajectory(
        messages_and_choices=histories[0] if histories else [],
        additional_histories=[History(messages_and_choices=h) for h in histories[1:]],
        reward=sample.reward,
        metadata={"window_id": sample.window_id, "trajectory_id": sample.trajectory_id},
    )


def _messages(call: Call) -> list[dict[str, str]]:
    return [*call.prompt(), {"role": "assistant", "content": call.response}]
