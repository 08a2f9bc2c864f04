"""Agent runs: what an agent did, step by step, for a judge who compares runs.

A judge may see what tells the future; training may not. So this decoding is apart from `traces`,
which feeds training, and nothing on the way to the trainer imports it. Of the future only P&L is
read: `action.result` and `action.correctness` stay undecoded here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from babylon_tasks.records.calls import answer_of
from babylon_tasks.records.recorded_steps import (
    NULL,
    Odd,
    RawTrace,
    RecordedCall,
    RecordedStep,
    clean,
    decode_leniently,
    parse_steps,
)
from babylon_tasks.text import one_line

Scalar = str | int | float | bool

_MAX_DOLLARS = 1e15
# A run stays in memory beside all others of its window; a judge reads far less than this.
_MAX_REASON = 1_000  # characters
_MAX_RESPONSE = 20_000  # characters searched for a reason
_MAX_NAME = 100  # characters of an action type or a parameter's name
_MAX_TEXT = 200  # characters of a parameter or an error
_MAX_PARAMETERS = 20

# The parameters in which the app's actions name the market and the side.
MARKET_KEYS = ("marketId", "ticker", "market", "symbol")
SIDE_KEYS = ("side", "direction", "outcome")
_FAILED = frozenset({"", "0", "false", "no", "failed", "failure", "error"})
# Agents answer in JSON, fenced, nested or cut short; the reason in it is the part worth reading.
_REASON = re.compile(
    r'"(?:reasoning|reason|rationale|thoughts?|explanation)"\s*:\s*"((?:[^"\\]|\\.)+)"', re.DOTALL
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunStep:
    """One step of a run.

    `index` counts the steps from 0. `action` is "" if the app recorded none. `pnl` and `balance`
    are the game's dollars **before** the agent acted (as the app records them), None if unknown.
    `reason` is the recorded text that best tells why it acted, "" if there is none.
    """

    index: int
    action: str
    parameters: dict[str, Scalar]
    success: bool
    error: str | None
    pnl: float | None
    balance: float | None
    reason: str

    @property
    def market(self) -> str | None:
        """The market's id or ticker, as the action names it."""
        return _first_text(self.parameters, MARKET_KEYS)

    @property
    def side(self) -> str | None:
        """YES or NO of a prediction, long or short of a perpetual."""
        return _first_text(self.parameters, SIDE_KEYS)

    @property
    def is_trade(self) -> bool:
        """Whether it names a market and a side; it may have failed."""
        return self.market is not None and self.side is not None


@dataclass(frozen=True, slots=True)
class AgentRun:
    """An agent's run."""

    trajectory_id: str
    agent_id: str
    steps: tuple[RunStep, ...]


class _State(msgspec.Struct, gc=False):
    agentPnL: Odd = NULL  # noqa: N815
    agentBalance: Odd = NULL  # noqa: N815


class _Action(msgspec.Struct, gc=False):
    actionType: Odd = NULL  # noqa: N815
    parameters: Odd = NULL
    success: Odd = NULL
    error: Odd = NULL
    reasoning: Odd = NULL


_state_decoder = msgspec.json.Decoder(_State)
_action_decoder = msgspec.json.Decoder(_Action)
_any_decoder = msgspec.json.Decoder(object)


def run_of(raw: RawTrace, steps: Sequence[RecordedStep]) -> AgentRun:
    """Return the run of a row's parsed steps; malformed parts of a step become unknown."""
    return AgentRun(
        raw.trajectory_id, raw.agent_id, tuple(map(_run_step, range(len(steps)), steps))
    )


def decode_run(raw: RawTrace) -> AgentRun:
    """Decode a row into a run.

    Raises:
        Unusable: `stepsJson` as a whole cannot be decoded, or is empty.
    """
    return run_of(raw, parse_steps(raw))


def pnl_path(run: AgentRun) -> list[float]:
    """Return the P&L in dollars before each step, without the steps where it is unknown."""
    return [step.pnl for step in run.steps if step.pnl is not None]


def trades(run: AgentRun) -> list[RunStep]:
    """Return the steps that name a market and a side, failed ones too."""
    return [step for step in run.steps if step.is_trade]


def failed_share(run: AgentRun) -> float:
    """Return the share (0 to 1) of the recorded actions that failed; 0 if none was recorded."""
    acted = [step for step in run.steps if step.action]
    return sum(not step.success for step in acted) / len(acted) if acted else 0.0


def _part(decoder: msgspec.json.Decoder[_T], raw: msgspec.Raw) -> _T | None:
    """Return a part of a step, or None if it is malformed."""
    try:
        return decode_leniently(decoder, raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _run_step(index: int, recorded: RecordedStep) -> RunStep:
    state = _part(_state_decoder, recorded.environmentState) or _State()
    action = _part(_action_decoder, recorded.action) or _Action()
    reasoning = _text(_part(_any_decoder, action.reasoning))
    error = _error(_part(_any_decoder, action.error))
    return RunStep(
        index=index,
        action=one_line(_text(_part(_any_decoder, action.actionType)), _MAX_NAME),
        parameters=_parameters(_part(_any_decoder, action.parameters)),
        success=_success(_part(_any_decoder, action.success), error),
        error=error,
        pnl=_dollars(_part(_any_decoder, state.agentPnL)),
        balance=_dollars(_part(_any_decoder, state.agentBalance)),
        reason=_reason(reasoning, recorded.llmCalls or ())[:_MAX_REASON],
    )


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _parameters(value: object) -> dict[str, Scalar]:
    """Return the first scalars of an object; an empty dict for any other value."""
    parameters: dict[str, Scalar] = {}
    for key, each in value.items() if isinstance(value, dict) else ():
        if len(parameters) == _MAX_PARAMETERS:
            break
        if isinstance(each, str):
            parameters[str(key)[:_MAX_NAME]] = each[:_MAX_TEXT]
        elif isinstance(each, bool | int | float):
            parameters[str(key)[:_MAX_NAME]] = each
    return parameters


def _error(value: object) -> str | None:
    """Return the message of an error, which is text or an object with a message."""
    text = _text(value.get("message") if isinstance(value, dict) else value)
    return one_line(text, _MAX_TEXT) or None


def _success(value: object, error: str | None) -> bool:
    """Return the recorded success; if it is unreadable, an action without an error succeeded."""
    if isinstance(value, bool | int | float):
        return bool(value)
    if isinstance(value, str):
        return value.strip().lower() not in _FAILED
    return error is None


def _dollars(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        dollars = float(value)
    except (ValueError, OverflowError):
        return None
    return dollars if abs(dollars) <= _MAX_DOLLARS else None  # None for NaN too


def _reason(reasoning: str, calls: Sequence[RecordedCall]) -> str:
    """Return the action's reasoning, else a call's, else an answer; acting calls come first."""
    if reasoning:
        return reasoning
    # The last call first, and calls that acted before calls that only thought.
    acted: list[RecordedCall] = []
    others: list[RecordedCall] = []
    for call in reversed(calls):
        purpose = _part(_any_decoder, call.purpose)
        (acted if purpose == "action" else others).append(call)
    ordered = [*acted, *others]
    for call in ordered:
        if thought := _text(_part(_any_decoder, call.reasoning)):
            return thought
    for call in ordered:
        if answer := clean(answer_of(call)).strip():
            return _reason_in(answer[:_MAX_RESPONSE])
    return ""


def _reason_in(answer: str) -> str:
    """Return the reason that a JSON answer gives, or the whole answer if it gives none."""
    for match in _REASON.finditer(answer):
        try:
            reason = json.loads(f'"{match[1]}"', strict=False)
        except ValueError:
            continue
        if isinstance(reason, str) and reason.strip():
            return clean(reason).strip()
    return answer


def _first_text(parameters: dict[str, Scalar], keys: Iterable[str]) -> str | None:
    """Return the first of the keys that holds text or a number, as text."""
    for key in keys:
        value = parameters.get(key)
        if (
            value is not None
            and not isinstance(value, bool)
            and (text := str(value)[:_MAX_TEXT].strip())
        ):
            return text
    return None
