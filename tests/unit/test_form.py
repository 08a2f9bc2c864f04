"""The form of an answer: what an action can be read from, and what refuses."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from babylon_tasks.errors import UserError
from babylon_tasks.records import form
from babylon_tasks.records.form import is_unusable, load_form_check, well_formed
from babylon_tasks.records.proofs import ANSWER
from babylon_tasks.simulation.game.hour import BROKEN
from babylon_tasks.simulation.game.market import ACTIONS
from babylon_tasks.simulation.game.prompts import write_answer

# Some of these take minutes where the search is quadratic; then the tests' own limit ends it.
ODD = [
    '{"a":' * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    '{"action":[' * 5_000 + "]}" * 5_000,
    "[" * 100_000,
    "{" * 1_000_000,
    "{}" * 500_000,
    '"' * 1_000_000,
    '{"' + '\\"' * 500_000,
    '{"\\' * 300_000,
    "<function=a>" * 90_000,
    "<action>" * 100_000,
    "<think>" * 100_000,
    "</think>" * 100_000,
    "I'm sorry " + " " * 1_000_000,
    "I'm sorry, but " * 70_000,
    '{"action":' + "9" * 100_000 + "}",
    '{"action":"\ud800"}',
    '{"action":NaN}',
    "\0\ud800\udfff",
]


@pytest.mark.parametrize(
    "text",
    [
        *map(write_answer, range(len(ACTIONS))),
        ANSWER,
        '{"action": "BUY_SHARES", "side": "YES", "amount": 50, "reason": "momentum is up"}',
        '```json\n{"actionType": "SELL_SHARES", "parameters": {"marketId": "17"}}\n```',
        'The set {1, 2} is odd. So I do this:\n{"action_type": "HOLD"}\nThat is all.',
        '<think>{"action": 3}</think>\n\n{"action":"HOLD"}',
        'and so I hold.\n</think>\n{"action":"HOLD"}',
        '{"decision": {"action": "BUY", "marketId": "17"}}',
        '{"action": {"name": "BUY", "parameters": {}}}',
        '{"type": "BUY", "parameters": {"marketId": "17"}}',
        '[{"action": "BUY"}]',
        '{"actions": [{"type": "BUY"}, {"type": "HOLD"}]}',
        '{"reason": "a } in a text, and \\" too", "action": "BUY"}',
        '{"note": "first"} {"action": "BUY"}',
        '<tool_call>\n{"name": "buy", "arguments": {"marketId": "17"}}\n</tool_call>',
        '[TOOL_CALLS][{"name": "buy", "arguments": {}}]',
        '{"tool_calls": [{"type": "function", "function": {"name": "buy", "arguments": "{}"}}]}',
        "<tool_call><function=buy><parameter=marketId>17</parameter></function></tool_call>",
        "<response><thought>It rises.</thought><action>BUY</action></response>",
        "x" * 1_000_000 + '{"action": "BUY"}',
        '{"action": "\ud800"}',
    ],
)
def test_an_action_can_be_read(text: str) -> None:
    assert well_formed(text)
    assert not is_unusable(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        BROKEN,
        '{"action": "BUY',
        '{"action": "BUY"',
        # What is whole inside of what is cut off is a part of it.
        '{"action": "BUY", "parameters": {"type": "limit"}, "reas',
        '{"steps": [{"action": "BUY"}, {"act',
        '{"action": ""}',
        '{"action": " "}',
        '{"action": 3}',
        '{"action": true}',
        '{"action": NaN}',
        '{"action": []}',
        '{"action": {}}',
        '{"action": null, "type": "BUY"}',  # `action` is there, so it decides
        '{"actions": ["BUY", 3]}',
        '{"side": "YES", "amount": 50}',
        '{"name": "Ada"}',
        '{"type": "text", "text": "I hold."}',
        "{'action': 'BUY'}",
        '{"action": "BUY\n"}',  # a line break in a string is no JSON
        "null",
        '"BUY"',
        "I would BUY here.",
        '<think>I could say {"action": "BUY"}',
        '<think>I could say {"action": "BUY"}</think> No.',
        "<action></action>",
        "<function=buy><parameter=marketId>17",
    ],
)
def test_no_action_can_be_read(text: str) -> None:
    assert not well_formed(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        '""',
        "<think>This is hard.</think>",
        "<think>This is",
        "I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I cannot trade.",
        "Sorry, I won't do that.",
        "I apologize, but I am unable to do so.",
        "Unfortunately, I cannot assist with trades.",
        "As an AI language model, I have no money.",
        "I'm just an AI, so I hold nothing.",
        "<think>Hm.</think>\n**I am not able to provide advice.**",
    ],
)
def test_empty_answers_and_refusals_are_unusable(text: str) -> None:
    assert is_unusable(text)


@pytest.mark.parametrize(
    "text",
    [
        'I cannot help it: {"action": "BUY"}',
        "Momentum is climbing, so mind your risk.",
        "The market cannot help it.",
        "I can't wait for ZETA to rise.",
        "I'm sorry I sold. ZETA is up.",
        "As an aide to the trade: hold.",
        BROKEN,
    ],
)
def test_other_answers_are_not_unusable(text: str) -> None:
    assert not is_unusable(text)


@given(st.text(st.characters(exclude_categories=()), max_size=200))
@settings(max_examples=200)
def test_any_text_has_an_answer(text: str) -> None:
    assert well_formed(text) in (True, False)
    assert is_unusable(text) in (True, False)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["action", "actions", "type", "name", "arguments", "function"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(_json, st.integers(0, 300))
@example({"action": {"action": {"action": {"action": {"action": {"action": "BUY"}}}}}}, 300)
def test_any_json_has_an_answer_and_what_is_cut_off_has_no_action(value: object, kept: int) -> None:
    text = json.dumps(value)
    assert well_formed(text) in (True, False)
    if isinstance(value, dict) and kept < len(text):
        assert not well_formed(text[:kept])


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_texts_have_an_answer(text: str) -> None:
    assert well_formed(text) in (True, False)
    assert is_unusable(text) in (True, False)


def test_without_a_setting_the_check_is_ours() -> None:
    assert load_form_check(None) is well_formed


def test_a_deployment_brings_its_check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def check(text: str) -> int:
        return len(text) // int(text)  # ValueError for what is no number

    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=check))
    loaded = load_form_check("ours:check")
    assert loaded("7") is False  # 1 // 7
    assert loaded("1") is True
    with caplog.at_level(logging.WARNING):
        assert not any(map(loaded, ["x", "y", "z"]))
    (line,) = caplog.messages
    assert "FORM_CHECK=ours:check raises" in line


def never_ends(text: str) -> bool:
    while text:
        pass
    return True


def tries_for_ever(text: str) -> bool:
    return re.match(r"(a+)+$", text) is not None


def waits(text: str) -> bool:
    return threading.Event().wait() or bool(text)


@pytest.mark.parametrize("check", [never_ends, tries_for_ever, waits])
def test_a_check_that_hangs_ends(
    check: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What else the process was to be woken for comes all the same."""
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=check))
    monkeypatch.setattr(form, "MOST_SECONDS", 0.05)
    woken = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: woken.set())
    others = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with caplog.at_level(logging.WARNING):
            assert load_form_check("ours:check")("a" * 60 + "b") is False
        assert "TimeoutError: it took longer than 0.05 s" in caplog.text
        assert woken.wait(20)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *others)


def test_a_limit_that_is_over_at_once_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the machine itself stands still for longer."""
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=waits))
    monkeypatch.setattr(form, "MOST_SECONDS", 1e-6)
    before = signal.getsignal(signal.SIGALRM)
    check = load_form_check("ours:check")
    for _ in range(100):
        assert check("x") is False
        assert signal.getsignal(signal.SIGALRM) is before


def test_a_check_that_is_awaited_by_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(text: str) -> bool:
        return bool(text)

    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=check))
    with pytest.raises(UserError, match=r"^FORM_CHECK=ours:check is an async function"):
        load_form_check("ours:check")


@pytest.mark.parametrize("answer", [None, 0, [], "yes", object(), math.nan])
def test_whatever_a_check_returns_is_true_or_false(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=lambda _: answer))
    assert load_form_check("ours:check")("x") is bool(answer)


@pytest.mark.parametrize("setting", ["no_such_module:check", "json:no_such_name", "json:__name__"])
def test_a_check_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"^FORM_CHECK={setting} ") as refused:
        load_form_check(setting)
    assert "\n" not in str(refused.value)
