"""A judge's answer and its checks: each trajectory named exactly once, scores in [0, 1]."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babylon_tasks.text import one_line

_OBJECT = re.compile(r'\{\s*"')
_MAX_OBJECTS = 1000  # tried in one answer
_MAX_DIGITS = 300  # of a whole number; a longer one overflows a float


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.nan


_decoder = json.JSONDecoder(parse_int=_whole_number)


@dataclass(frozen=True, slots=True)
class Entry:
    """The judge's score and explanation for the trajectory that it saw as number `id`."""

    id: str
    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was paid for; `entries` is None if it could not be read.

    `cut_off`: it reached the token limit. `usd` is None if the price is unknown.
    """

    entries: Sequence[Entry] | None
    cut_off: bool
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


def find_entries(content: str) -> list[Entry] | None:
    """Return the entries in a text that should be only `{"scores": […]}`, but often has more.

    Of several such objects (a draft, then the answer) the last one counts. Each part of the text is
    read only once, since this runs in the event loop.
    """
    end, last = 0, None
    for _ in range(_MAX_OBJECTS):
        start = _OBJECT.search(content, end)
        if start is None:
            break
        try:
            candidate, end = _decoder.raw_decode(content, start.start())
        except json.JSONDecodeError as error:
            end = max(error.pos, start.end())
        except RecursionError:
            break
        else:
            if isinstance(candidate.get("scores"), list):
                last = _entries(candidate["scores"])
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
    for what, faulty in (
        ("scores are missing for ids", [each for each in wanted if each not in ids]),
        ("there are no ids", sorted({each for each in ids if each not in wanted})),
        ("more than one score for ids", [each for each in wanted if ids.count(each) > 1]),
        (
            "no number from 0 to 1 for ids",
            [entry.id for entry in answer.entries if not 0 <= entry.score <= 1],
        ),
    ):
        if faulty:
            faults.append(f"{what} {', '.join(faulty[:20])}")
    return one_line("; ".join(faults), 500) if faults else None
