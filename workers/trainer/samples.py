"""The samples of a step: read from their file, and grouped by window."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec

from babylon_tasks.errors import Final
from babylon_tasks.records.steps import Sample

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


def trajectory_groups(samples: list[Sample]) -> list[list[Sample]]:
    """One group per window; a window's samples stand together."""
    by_window = itertools.groupby(samples, key=lambda sample: sample.window_id)
    return [list(window) for _, window in by_window]
