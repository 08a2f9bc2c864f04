"""A judge's answer, read with suspicion: each trajectory named exactly once, scores in [0, 1]."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babylon_tasks.text import one_line

_OBJECT = re.compile(r'\{\s*"')
_MAX_OBJECTS = 1000  # looked at in one answer
_MAX_DIGITS = 300  # of a whole number; more overflow a float


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.nan


_decoder = json.JSONDecoder(parse_int=_whole_number)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the judge says of the trajectory that it saw as number `id`."""

    id: str
    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back and was paid for; `entries` is None where it could not be read.

    `cut_off` is whether it ended for want of tokens; `usd` is None where no price is known.
    """

    entries: Sequence[Entry] | None
    cut_off: bool
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


def find_entries(content: str) -> list[Entry] | None:
    """Return the entries in a text that should be `{"scores": […]}` alone, and often is not.

    Of several (a draft, then the answer) the last. Each part of the text is read once, however odd
    it is: this runs in the event loop.
    """
    end, last = 0, None
    for _ in range(_MAX_OBJECTS):
        start = _OBJECT.search(content, end)
        if start is None:
            break
        try:
            found, end = _decoder.raw_decode(content, start.start())
        except json.JSONDecodeError as error:
            end = max(error.pos, start.end())
        except RecursionError:
            break
        else:
            if isinstance(found.get("scores"), list):
                last = _entries(found["scores"])
    return last


def _entries(scores: list[Any]) -> list[Entry] | None:
    entries = []
    for each in scores:
        if not isinstance(each, dict) or "trajectory_id" not in each:
            return None
        score: Any = each.get("score")
        explanation: Any = each.get("explanation")
        number = isinstance(score, int | float) and not isinstance(score, bool)
        entries.append(
            Entry(
                str(each["trajectory_id"]).strip(),
                float(score) if number else math.nan,
                explanation if isinstance(explanation, str) else "",
            )
        )
    return entries


def fault_of(answer: Answer, count: int) -> str | None:
    """Return what is wrong with an answer about trajectories 1 to `count`, or None."""
    if answer.entries is None:
        if answer.cut_off:
            return "it was cut off before its end"
        return 'it was not a JSON object of the form {"scores": [...]}'
    ids = [entry.id for entry in answer.entries]
    wanted = [str(number) for number in range(1, count + 1)]
    faults = []
    for what, found in (
        ("scores are missing for ids", [each for each in wanted if each not in ids]),
        ("there are no ids", sorted({each for each in ids if each not in wanted})),
        ("more than one score for ids", [each for each in wanted if ids.count(each) > 1]),
        (
            "no number from 0 to 1 for ids",
            [entry.id for entry in answer.entries if not 0 <= entry.score <= 1],
        ),
    ):
        if found:
            faults.append(f"{what} {', '.join(found[:20])}")
    return one_line("; ".join(faults), 500) if faults else None
