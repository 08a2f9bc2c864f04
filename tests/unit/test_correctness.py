"""The score from outcomes, risk and success, against numbers worked out by hand."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_tasks.records.actions import AgentRun, RunStep, decode_run
from babylon_tasks.records.markets import Market
from babylon_tasks.records.recorded_steps import RawTrace, Unusable
from babylon_tasks.records.traces import decode
from babylon_tasks.scoring.correctness import WEIGHTS, Correctness, rate
from babylon_tasks.scoring.scorer import Group
from tests.odd import json_values, mutated_traces

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def prediction(outcome: str | None, market_id: str = "m1") -> Market:
    return Market(None, None, None, None, market_id, "Will it?", outcome)


def stock(change: float | None, start: float | None = None, end: float | None = None) -> Market:
    return Market("ORBX", start, end, change, None, None, None)


def bet(
    side: str, market: str = "m1", action: str = "BUY_SHARES", success: bool = True, pnl: float = 0
) -> RunStep:
    return RunStep(
        0, action, {"marketId": market, "side": side}, success, None, pnl, 1000.0, "because"
    )


def wait(pnl: float | None, success: bool = True) -> RunStep:
    return RunStep(0, "HOLD", {}, success, None, pnl, 1000.0, "")


def rated(*moves: RunStep, markets: list[Market] | None = None) -> dict[str, float]:
    known = {m.ticker or m.id or "": m for m in (markets or [prediction("YES")])}
    return rate(AgentRun("t", "a", moves), known)


def correctness(*moves: RunStep, markets: list[Market] | None = None) -> float:
    return rated(*moves, markets=markets)["correctness"]


def risk_adjusted(*pnl: float | None) -> float:
    return rated(*map(wait, pnl))["risk_adjusted"]


def test_a_price_that_is_no_number_decides_nothing() -> None:
    """Postgres' decimals may be NaN."""
    for market in (stock(math.nan), stock(None, 1.0, math.nan), stock(None, math.inf, math.inf)):
        for side in ("LONG", "SHORT"):
            assert correctness(bet(side, "ORBX"), markets=[market]) == 0.5
    assert not stock(None, math.nan, 1.0).has_prices


@pytest.mark.parametrize(
    ("outcome", "side", "action", "right"),
    [
        ("YES", "YES", "BUY_SHARES", 1.0),
        ("YES", "NO", "BUY_SHARES", 0.0),
        ("NO", "NO", "BUY_SHARES", 1.0),
        (" no ", "No", "buy", 1.0),
        ("YES", "YES", "SELL_SHARES", 0.0),  # sold what won
        ("YES", "NO", "sell_shares", 1.0),
        ("NO", "YES", "CLOSE_POSITION", 1.0),
        (None, "YES", "BUY_SHARES", 0.5),
        ("", "YES", "BUY_SHARES", 0.5),
        ("UNRESOLVED", "YES", "BUY_SHARES", 0.5),
        ("YES", "MAYBE", "BUY_SHARES", 0.5),
        ("YES", "LONG", "BUY_SHARES", 0.5),  # no price to be long of
    ],
)
def test_a_bet_on_a_prediction(outcome: str | None, side: str, action: str, right: float) -> None:
    assert correctness(bet(side, action=action), markets=[prediction(outcome)]) == right


@pytest.mark.parametrize(
    ("market", "side", "action", "right"),
    [
        (stock(2.5), "long", "OPEN_POSITION", 1.0),
        (stock(2.5), "SHORT", "OPEN_POSITION", 0.0),
        (stock(-0.1), "short", "OPEN_POSITION", 1.0),
        (stock(-0.1), "long", "CLOSE_POSITION", 1.0),  # left before it fell
        (stock(2.5), "long", "CLOSE_POSITION", 0.0),
        (stock(0.0), "long", "OPEN_POSITION", 0.5),
        (stock(0.0, 10.0, 10.0), "long", "OPEN_POSITION", 0.5),
        (stock(None), "long", "OPEN_POSITION", 0.5),
        (stock(None, 10.0, None), "long", "OPEN_POSITION", 0.5),
        (stock(None, 10.0, 11.0), "long", "OPEN_POSITION", 1.0),
        # 1000.00 to 1000.04 is 0.004 %, which the column keeps as 0.00.
        (stock(0.0, 1000.0, 1000.04), "short", "OPEN_POSITION", 0.0),
        (stock(2.5), "YES", "BUY_SHARES", 0.5),  # a stock has no outcome
    ],
)
def test_a_bet_on_a_price(market: Market, side: str, action: str, right: float) -> None:
    assert correctness(bet(side, "ORBX", action), markets=[market]) == right


def test_only_decided_bets_that_were_made_count() -> None:
    markets = [prediction("YES"), prediction(None, "open")]
    moves = [
        bet("YES"),
        bet("YES"),
        bet("NO"),
        bet("NO", success=False),
        bet("NO", market="open"),
        bet("NO", market="unknown"),
        wait(0.0),
    ]
    assert correctness(*moves, markets=markets) == pytest.approx(2 / 3)


def test_without_trades_or_markets_correctness_is_one_half() -> None:
    assert correctness(wait(0.0)) == 0.5
    assert rate(AgentRun("t", "a", (bet("YES"),)), {})["correctness"] == 0.5


def test_risk_adjusted_return_by_hand() -> None:
    # Changes 10, 30, -10: mean 10, deviation √((0 + 400 + 400) / 3) = 16.330, ratio 0.61237;
    # tanh 0.61237 = 0.54579, (1 + 0.54579) / 2 = 0.77290.
    assert risk_adjusted(0, 10, 40, 30) == pytest.approx(0.77290, abs=1e-5)
    # The other way round it is what is missing to 1.
    assert risk_adjusted(0, -10, -40, -30) == pytest.approx(1 - 0.77290, abs=1e-5)
    # Unknown P&L is left out of the path: the same changes.
    assert risk_adjusted(0, None, 10, 40, None, 30) == pytest.approx(0.77290, abs=1e-5)
    # In cents or in millions: risk is relative.
    assert risk_adjusted(0, 0.1, 0.4, 0.3) == pytest.approx(0.77290, abs=1e-5)
    assert risk_adjusted(1e9, 1e9 + 1e7, 1e9 + 4e7, 1e9 + 3e7) == pytest.approx(0.77290, abs=1e-5)


def test_a_path_without_risk() -> None:
    assert risk_adjusted() == 0.5
    assert risk_adjusted(5) == 0.5
    assert risk_adjusted(None, None) == 0.5
    assert risk_adjusted(-300, -300, -300) == 0.5  # constant
    # One change has no deviation; its ratio is taken as 1: tanh 1 = 0.76159.
    assert risk_adjusted(0, 7) == pytest.approx((1 + 0.76159) / 2, abs=1e-5)
    assert risk_adjusted(7, 0) == pytest.approx((1 - 0.76159) / 2, abs=1e-5)
    # Steady: the limit of ever less deviation.
    assert risk_adjusted(0, 10, 20, 30) == 1.0
    assert risk_adjusted(0, -10, -20, -30) == 0.0
    assert risk_adjusted(0, 0.1, 0.2, 0.3, 0.4, 0.5) == 1.0  # as floats, not quite steady


def test_a_steadier_gain_is_never_worth_less() -> None:
    wobbles = [risk_adjusted(0, 10 + wobble, 20, 30) for wobble in (9, 5, 3, 1, 0.1, 0.01, 0)]
    assert wobbles == sorted(wobbles)


def test_success_is_the_share_of_actions_that_worked() -> None:
    assert rated(wait(0), wait(0), wait(0, success=False), wait(0))["success"] == 0.75
    assert rated(RunStep(0, "", {}, True, None, 0.0, 0.0, ""))["success"] == 1.0  # none recorded


def group(*runs: AgentRun, markets: list[Market]) -> Group:
    outcomes = [
        decode(RawTrace(play.trajectory_id, play.agent_id, 0, '[{"llmCalls": []}]')).outcome
        for play in runs
    ]
    return Group("2026-03-01T10:00", outcomes, {p.trajectory_id: p for p in runs}, markets)


def test_the_score_by_hand() -> None:
    good = AgentRun("t1", "a", (bet("YES", pnl=0), bet("NO", pnl=10), wait(20), wait(30)))
    poor = AgentRun("t2", "a", (bet("LONG", "ORBX", "OPEN", pnl=0), wait(0, success=False)))
    markets = [prediction("YES"), stock(-3.0)]
    first, second = asyncio.run(Correctness().score(group(good, poor, markets=markets)))
    # t1: 0.5 · 1/2 + 0.3 · 1 (steady) + 0.2 · 1 = 0.75
    assert first.components == {"correctness": 0.5, "risk_adjusted": 1.0, "success": 1.0}
    assert first.score == pytest.approx(0.75)
    # t2: 0.5 · 0 + 0.3 · 0.5 + 0.2 · 0.5 = 0.25; the same agent's other run does not help it.
    assert second.components == {"correctness": 0.0, "risk_adjusted": 0.5, "success": 0.5}
    assert second.score == pytest.approx(0.25)
    assert [s.raw_score for s in (first, second)] == [first.score, second.score]
    assert (first.trajectory_id, first.agent_id, first.judge_model) == ("t1", "a", None)
    assert first.reasoning == "correctness: correctness 0.50, risk_adjusted 1.00, success 1.00"
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_nobody_scores_nothing() -> None:
    assert asyncio.run(Correctness().score(group(markets=[]))) == []


odd_numbers = st.none() | st.floats(allow_nan=False, min_value=-1e15, max_value=1e15)
odd_markets = st.builds(
    Market,
    st.none() | st.sampled_from(["ORBX", "feed", "m1", ""]),
    odd_numbers,
    odd_numbers,
    odd_numbers,
    st.none() | st.sampled_from(["m1", "m2", ""]),
    st.none() | st.text(max_size=5),
    st.none() | st.sampled_from(["YES", "NO", "yes", "", "?"]),
)


@st.composite
def odd_traces(draw: st.DrawFn) -> str:
    """Steps that trade, with anything where a value should be."""

    def maybe(value: Any) -> Any:
        return draw(st.just(value) | json_values)

    return json.dumps(
        [
            {
                "environmentState": {"agentPnL": draw(odd_numbers | json_values)},
                "action": {
                    "actionType": maybe("SELL_SHARES"),
                    "parameters": maybe({"marketId": maybe("m1"), "side": maybe("YES")}),
                    "success": maybe(True),
                },
            }
            for _ in range(draw(st.integers(1, 5)))
        ]
    )


@quick
@given(odd_traces() | mutated_traces(), st.lists(odd_markets, max_size=4))
def test_whatever_was_played_the_components_are_shares(text: str, markets: list[Market]) -> None:
    try:
        play = decode_run(RawTrace("t1", "a", len(text), text))
    except Unusable:
        return
    (score,) = asyncio.run(Correctness().score(group(play, markets=markets)))
    assert score.components.keys() == WEIGHTS.keys()
    for value in (score.score, *score.components.values()):
        assert math.isfinite(value)
        assert 0 <= value <= 1
