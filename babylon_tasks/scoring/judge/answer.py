"""A judge's answer and its checks: each trajectory named exactly once, scores in [0, 1]."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from babylon_tasks.text import one_line

_OBJECT = re.compile(r'\{\s*"')
_MAX_OBJECTS = 1000  # tried in one answer
_MAX_DIGITS = 300  # of a whole number; a longer one overflows a float

# Around a judge's thoughts. A template may have swallowed the opening tag.
_TAG = re.compile(
    r"<(?P<end>/)?(?:\w{1,20}:)?"
    r"(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|details)"
    r"(?:\s[^<>]{0,200})?>"
    r"|\[(?P<end_2>/)?THINK\]|◁(?P<end_3>/)?think▷"
    r"|<\|(?:START_THINKING|begin_of_thought|(?P<end_5>END_THINKING|end_of_thought))\|>"
    r"|<\|channel\|>(?:analysis|commentary|(?P<end_4>final))",
    re.IGNORECASE,
)
_BEFORE_VERDICT = re.compile(r"\s*(?:<\|message\|>|<answer>)?\s*(?:```\w*)?\s*")
_STRING_OR_COMMA = re.compile(r'("(?:\\.|[^"\\])*(?:"|\Z))|,(?=\s*[}\]])', re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20}))\s*(%|/\s*1(?:\.0)?)?\s*")
_PERCENT = 100
_POLITE_CHARS = 300  # before an answer


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.nan


_decoder = json.JSONDecoder(parse_int=_whole_number)
_lenient_decoder = json.JSONDecoder(parse_int=_whole_number, strict=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """The judge's score and explanation for the trajectory that it saw as number `id`."""

    id: str
    score: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was paid for; `entries` is None if it could not be read.

    `cut_off`: it reached the token limit. `usd` is None if the price is unknown. `only_thought`: it
    has thoughts, and no verdict after them. `filtered`: a filter of the judge's took it back.
    """

    entries: Sequence[Entry] | None
    cut_off: bool
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    only_thought: bool = False
    filtered: bool = False


def find_entries(content: str, *, cut_off: bool = False) -> list[Entry] | None:
    """Return the entries in a text that should be only `{"scores": […]}`, but often has more.

    Of several such objects (a draft, then the answer) the last one counts, and none that stands in
    a thought. Where the text was cut off, an object after other words may be a draft, so it has to
    come first. Each part of the text is read only once, since this runs in the event loop.
    """
    if content.lstrip()[:1] == '"':
        content = _decoded(content)
    found = _verdict(content, cut_off, _decoder)
    if found is None:
        # With commas before brackets and line breaks in strings, as JSON5 has them.
        without = _STRING_OR_COMMA.sub(lambda match: match[1] or "", content)
        found = _verdict(without, cut_off, _lenient_decoder)
    return found


def only_thought(content: str, thoughts: str, *, cut_off: bool) -> bool:
    """Tell whether an answer without a verdict ended in its thoughts, for want of tokens.

    `thoughts` are those that the server sent apart from the content.
    """
    tags = list(_TAG.finditer(content))
    if tags and not _is_end(tags[-1]):
        return True
    visible = content[tags[-1].end() :] if tags else content
    if not visible.strip():
        return cut_off or bool(thoughts or tags)
    begun = _OBJECT.search(visible[:_POLITE_CHARS])
    whole = {start for start, _, _ in _objects(visible, _decoder)}
    return cut_off and (begun is None or begun.start() in whole)  # a whole one is a draft


def to_share(entries: Sequence[Entry] | None) -> Sequence[Entry] | None:
    """Return the entries with scores from 0 to 1, if they are all from 0 to 100.

    Only what can be nothing else: one is above 10, and none is in (0, 1], where it would be unclear
    which scale it has.
    """
    numbers = [entry.score for entry in entries or ()]
    percent = all(each == 0 or 1 < each <= _PERCENT for each in numbers)
    if entries and percent and max(numbers) > 10:
        return [replace(entry, score=entry.score / _PERCENT) for entry in entries]
    return entries


def _decoded(content: str) -> str:
    """Return the text in a text that was encoded as JSON once too often; else what was given."""
    try:
        inner = json.loads(content)
    except ValueError:
        return content
    return inner if isinstance(inner, str) else content


def _verdict(content: str, cut_off: bool, decoder: json.JSONDecoder) -> list[Entry] | None:
    objects = _objects(content, decoder)
    starts = [start for start, _, _ in objects]
    first, in_thought = 0, False
    for tag in _TAG.finditer(content):
        before = bisect_right(starts, tag.start()) - 1
        if before >= 0 and tag.start() < objects[before][1]:
            continue  # an explanation quotes it
        first, in_thought = tag.end(), not _is_end(tag)
    if in_thought:
        return None
    last = None
    for start, _, candidate in objects:
        scores = candidate.get("scores")
        if start < first or not isinstance(scores, list):
            continue
        if not cut_off or start == _after_opening(content, first):
            last = _entries(scores)
    return last


def _objects(content: str, decoder: json.JSONDecoder) -> list[tuple[int, int, dict[str, Any]]]:
    """Return the outermost objects of a text, each with its start and end."""
    end, found = 0, []
    for _ in range(_MAX_OBJECTS):
        start = _OBJECT.search(content, end)
        if start is None:
            break
        try:
            candidate, end = decoder.raw_decode(content, start.start())
        except json.JSONDecodeError as error:
            end = max(error.pos, start.end())
        except RecursionError:
            break
        else:
            found.append((start.start(), end, candidate))
    return found


def _is_end(tag: re.Match[str]) -> bool:
    return any(tag.groups())


def _after_opening(content: str, position: int) -> int:
    """Return where an object would begin that comes first, in a code fence or not."""
    match = _BEFORE_VERDICT.match(content, position + content.startswith("\ufeff", position))
    return match.end() if match else position


def _entries(scores: list[Any]) -> list[Entry] | None:
    entries = []
    for each in scores:
        if not isinstance(each, dict) or "trajectory_id" not in each:
            return None
        explanation: Any = each.get("explanation")
        entries.append(
            Entry(
                str(each["trajectory_id"]).strip(),
                _number(each.get("score")),
                explanation if isinstance(explanation, str) else "",
            )
        )
    return entries


def _number(score: Any) -> float:
    """Return a score that was written as a number, or as a text such as "0.5", "50%" or "0.5/1"."""
    if isinstance(score, str) and (match := _NUMBER.fullmatch(score)):
        return float(match[1]) / (_PERCENT if match[2] == "%" else 1)
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return float(score) if number else math.nan


def fault_of(answer: Answer, count: int) -> str | None:
    """Return what is wrong with an answer about trajectories 1 to `count`, or None."""
    if answer.entries is None:
        if answer.filtered:
            return "the judge's filter took it back"
        if answer.only_thought:
            return "it ended in its thoughts, before any verdict"
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
