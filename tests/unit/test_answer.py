"""What a judge may send instead of what it was asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.scoring.judge.answer import (
    Answer,
    Entry,
    fault_of,
    find_entries,
    only_thought,
    to_share,
)
from tests.odd import ODD_TOKENS, json_values


def scores(*numbers: Any) -> str:
    """The right answer: 1, 2, … with these scores."""
    return json.dumps(
        {
            "scores": [
                {"trajectory_id": str(n), "explanation": f"why {n}", "score": number}
                for n, number in enumerate(numbers, start=1)
            ]
        }
    )


RIGHT = scores(0.25, 1)
ENTRIES = [Entry("1", 0.25, "why 1"), Entry("2", 1.0, "why 2")]


def answer(entries: Sequence[Entry] | None, cut_off: bool = False) -> Answer:
    return Answer(entries, cut_off, 10, 5, None)


def fault(content: str, count: int = 2, cut_off: bool = False) -> str | None:
    return fault_of(answer(find_entries(content), cut_off), count)


@pytest.mark.parametrize(
    "content",
    [
        RIGHT,
        f"  \n{RIGHT}\n\n",
        f"Here are my scores:\n{RIGHT}\nI hope they help {{and that is all}}.",
        f"```json\n{RIGHT}\n```",
        json.dumps(json.loads(RIGHT), indent=4),
        f'{{"thinking": "first {{"}} {RIGHT}',
        f'{{"draft": [1, 2]}}\n{{}}\n{RIGHT}',
        f'{{"scores": "see below"}} {RIGHT}',
        f"{{curly}} prose {{ 1 }} {{{{ }}}} {RIGHT}",
        f'{{"draft": [1, 2\n{RIGHT}',
        f'{{"scores": [{{"trajectory_id": "1", "explanation": "cut\nAgain: {RIGHT}',
        f"{scores(0, 0)}{RIGHT}",  # a draft, then the answer
        RIGHT[:-1] + ', "note": {"scores": []}}',
        f"\ufeff{RIGHT}",
        f"<think>{scores(0, 0)}</think>{RIGHT}",
        f"<thinking>\nhm {scores(0, 0)}\n</thinking>\n\n```json\n{RIGHT}\n```",
        f"{scores(0, 0)} or so</think>\n{RIGHT}",  # the template opened the thought
        f"<think>a</think><think>{scores(0, 0)}</think>{RIGHT}",
        f"[THINK]{scores(0, 0)}[/THINK]{RIGHT}",
        f"<details type='reasoning'>{scores(0, 0)}</details>{RIGHT}",
        json.dumps(RIGHT),
        f"<|channel|>analysis<|message|>{scores(0, 0)}<|end|><|channel|>final<|message|>{RIGHT}",
        RIGHT.replace("}]", "},]").replace("]}", "],}"),
        RIGHT.replace("0.25", '"0.25"'),
        RIGHT.replace("0.25", '" 25% "'),
        RIGHT.replace("0.25", '"25 %"'),
        RIGHT.replace("0.25", '"+.25/1.0"'),
        RIGHT.replace('"1"', "1").replace('"2"', "2"),
    ],
)
def test_the_scores_are_found_among_other_things(content: str) -> None:
    assert find_entries(content) == ENTRIES
    assert fault(content) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "I cannot judge this.",
        "null",
        "[]",
        "{}",
        json.dumps(json.loads(RIGHT)["scores"]),  # no object around it
        f'{{"result": {RIGHT}}}',  # it was asked for one form, and is told so
        '{"scores": {"1": 0.5, "2": 0.5}}',
        '{"scores": ["1", "2"]}',
        '{"scores": [{"score": 0.5}]}',
        '{"scores": [null]}',
        RIGHT[:-2],
        RIGHT.replace('"', "'"),
        f"<think>{RIGHT}",  # a draft
        f"<think>It is {RIGHT}. But wait, the",
        f"<thinking>{RIGHT}</thinking> I cannot say.",
        f"It is {RIGHT}. No.</think>",
        f"{RIGHT}<think>Or rather",
        f"<think duration='3'>{RIGHT}",
        f"<details type='reasoning'>{RIGHT}",
        f"<scratchpad>{RIGHT}</scratchpad>",
        f"<think>a</think>{RIGHT}<think>{RIGHT}",
        f"[THINK]{RIGHT}[/THINK]",
        f"<|START_THINKING|>{RIGHT}",
        f"<|begin_of_thought|>{RIGHT}<|end_of_thought|>",
        f"<|channel|>analysis<|message|>{RIGHT}<|end|>",
    ],
)
def test_what_is_not_of_the_form_is_nothing(content: str) -> None:
    assert find_entries(content) is None
    assert "JSON object of the form" in (fault(content) or "")
    assert "cut off" in (fault(content, cut_off=True) or "")


@pytest.mark.parametrize("position", range(1, len(RIGHT)))
def test_half_an_answer_is_no_answer(position: int) -> None:
    assert find_entries(RIGHT[:position]) is None


def test_an_answer_that_was_cut_off_after_its_end_counts() -> None:
    assert fault(RIGHT + "\nMoreover, the", cut_off=True) is None


@pytest.mark.parametrize(
    "content",
    [f"I weigh: {RIGHT} But", f"hm {scores(0, 0)} or {RIGHT}", f"<think>a</think>hm {RIGHT}"],
)
def test_what_comes_after_other_words_may_be_a_draft_if_more_was_to_come(content: str) -> None:
    assert find_entries(content) == ENTRIES
    assert find_entries(content, cut_off=True) is None
    assert only_thought(content, "", cut_off=True)


@pytest.mark.parametrize(
    "content",
    [RIGHT, f"\ufeff {RIGHT}. More", f"```json\n{RIGHT}\n`", f"<think>a</think>\n{RIGHT}\nSo",
     f"{scores(0, 0)}</think>{RIGHT}"],
)  # fmt: skip
def test_what_comes_first_is_the_verdict_even_if_more_was_to_come(content: str) -> None:
    assert find_entries(content, cut_off=True) == ENTRIES


@pytest.mark.parametrize(
    ("content", "thoughts", "cut_off"),
    [
        ("", "Let me see", True),
        ("", "", True),  # some count their thoughts, and do not send them
        ("", "Let me see", False),  # some say `stop` whatever happened
        ("<think>Let me see", "", False),
        (f"<think>{RIGHT}", "", True),
        ("Let me see. The first one", "", True),
        ("Let me see</think>", "", True),
    ],
)
def test_an_answer_that_ends_in_thoughts_is_known(
    content: str, thoughts: str, cut_off: bool
) -> None:
    assert find_entries(content, cut_off=cut_off) is None
    assert only_thought(content, thoughts, cut_off=cut_off)


@pytest.mark.parametrize(
    ("content", "cut_off"),
    [("", False), ("No.", False), (RIGHT[:50], True), (f"My scores:\n{RIGHT[:-9]}", True),
     (f"<think>a</think>{RIGHT[:50]}", True)],
)  # fmt: skip
def test_other_bad_answers_are_no_thoughts(content: str, cut_off: bool) -> None:
    assert not only_thought(content, "", cut_off=cut_off)


def test_a_verdict_may_speak_of_thoughts() -> None:
    content = RIGHT.replace("why 1", "it wrote <think> and </think>").replace("why 2", "<think>")
    entries = find_entries(content) or []
    assert [entry.score for entry in entries] == [0.25, 1]


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ([85, 0, 40.5], [0.85, 0, 0.405]),
        ([100, 50], [1, 0.5]),
        ([9, 4], [9, 4]),  # of 10, or of 100
        ([85, 0.5], [85, 0.5]),
        ([85, 1], [85, 1]),
        ([85, -1], [85, -1]),
        ([101, 50], [101, 50]),
        ([0.5, 1], [0.5, 1]),
        ([], []),
    ],
)
def test_hundredths_are_made_shares_if_they_can_be_nothing_else(
    given: list[float], shares: list[float]
) -> None:
    entries = to_share([Entry("1", each, "") for each in given]) or []
    assert [entry.score for entry in entries] == pytest.approx(shares)


@pytest.mark.parametrize("each", [1, "1", " 1 ", "1\n"])
def test_ids_may_be_numbers_or_have_blanks(each: Any) -> None:
    content = json.dumps({"scores": [{"trajectory_id": each, "score": 0.5}]})
    assert find_entries(content) == [Entry("1", 0.5, "")]
    assert fault(content, 1) is None


@pytest.mark.parametrize("each", ["01", "1.0", 1.0, True, None, "one", ["1"], {"id": 1}, "①", ""])
def test_ids_that_only_look_alike_are_others(each: Any) -> None:
    content = json.dumps({"scores": [{"trajectory_id": each, "score": 0.5}]})
    why = fault(content, 1) or ""
    assert "scores are missing for ids 1" in why
    assert "there are no ids" in why


@pytest.mark.parametrize(
    "number",
    ["true", "false", "null", '"high"', '""', '"0,5"', '"1e-1"', '"101%"', '"\\u0663"', "[]",
     "NaN", "Infinity", "-Infinity", "-0.1", "1.01", "1e999", "1" + "0" * 299, "1" + "0" * 400,
     "1" * 5000, "-1e-9"],
)  # fmt: skip
def test_scores_that_are_no_number_from_0_to_1(number: str) -> None:
    content = RIGHT.replace("0.25", number)
    assert fault(content) == "no number from 0 to 1 for ids 1"


@pytest.mark.parametrize(("number", "value"), [("0", 0), ("1", 1), ("-0.0", 0), ("5e-1", 0.5)])
def test_scores_at_the_ends(number: str, value: float) -> None:
    content = RIGHT.replace("0.25", number)
    (entry, _) = find_entries(content) or []
    assert entry.score == value
    assert fault(content) is None


@pytest.mark.parametrize("explanation", [None, 3, ["x"], {"a": 1}])
def test_an_explanation_that_is_no_text_is_none(explanation: Any) -> None:
    content = {"scores": [{"trajectory_id": 1, "explanation": explanation, "score": 1}]}
    assert find_entries(json.dumps(content)) == [Entry("1", 1.0, "")]


def test_a_missing_score_is_no_number() -> None:
    (entry,) = find_entries('{"scores": [{"trajectory_id": "1"}]}') or []
    assert math.isnan(entry.score)
    assert fault('{"scores": [{"trajectory_id": "1"}]}', 1) == "no number from 0 to 1 for ids 1"


def test_faults_name_the_ids() -> None:
    def of(*ids: str, count: int = 3) -> str | None:
        return fault_of(answer([Entry(each, 0.5, "") for each in ids]), count)

    assert of("1", "2", "3") is None
    assert of("3", "1", "2") is None  # any order
    assert of("1", "3") == "scores are missing for ids 2"
    assert of("1", "2", "2", "3") == "more than one score for ids 2"
    assert of("1", "2", "3", "4") == "there are no ids 4"
    assert of("0", "1", "2") == "scores are missing for ids 3; there are no ids 0"
    assert of() == "scores are missing for ids 1, 2, 3"
    assert of(count=0) is None


def test_a_fault_is_one_short_line() -> None:
    long = [Entry("\x1b[2J\n" + "9" * 10_000, math.nan, "") for _ in range(5_000)]
    why = fault_of(answer(long), 64) or ""
    assert len(why) <= 500
    assert why.isprintable()


@pytest.mark.parametrize(
    "piece",
    ["{", '{"', '{"a":', '{"a":[', '{"a":1,', '{"":1}', "{}", "{ ", '{":', '{"{"', '{"\n', "\\",
     '"', '{"a":"\\"', "1", "[", '{"scores":[', '{"scores":[],', '{"scores":1}', "<think>",
     "</think>", '{"a":"<think>"}', "<", ",", ',"', ",\\", "{,"],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_at_once(piece: str) -> None:
    """It took hours: each brace was another start, and each start was read to its end."""
    started = time.process_time()
    for content in (piece * (1_000_000 // len(piece)), '{"a":[' * 300 + piece * 200_000):
        find_entries(content)
    assert time.process_time() - started < 2


@given(st.text() | st.lists(st.sampled_from([*ODD_TOKENS, RIGHT, '{"scores":'])).map(" ".join))
def test_any_text_is_read_or_refused(content: str) -> None:
    why = fault(content)
    assert why is None or (why.isprintable() and 0 < len(why) <= 500)


@given(st.lists(st.fixed_dictionaries({"trajectory_id": json_values, "score": json_values})))
def test_any_values_are_read_or_refused(values: list[dict[str, Any]]) -> None:
    entries = find_entries(json.dumps({"scores": values}))
    assert entries is not None
    assert len(entries) == len(values)
    why = fault_of(answer(entries), 2)
    if why is None:
        assert sorted(entry.id for entry in entries) == ["1", "2"]
        assert all(0 <= entry.score <= 1 for entry in entries)
