"""The market that agents play in: its numbers by hand, its luck on average, and its secrets."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.simulation.agents import agent
from babylon_tasks.simulation.game import hour as hours
from babylon_tasks.simulation.game import lessons, market
from babylon_tasks.simulation.game.hour import BROKEN, DECISIONS, MARKETS, Answer, Hour, play_hour
from babylon_tasks.simulation.game.look import fresh_markets, look, questions
from babylon_tasks.simulation.game.market import (
    ACTIONS,
    DOWN,
    HOLD,
    LURE,
    SIGNALS,
    UP,
    Market,
    Outcome,
    Rules,
    chance_up,
    draw_market,
    draw_outcome,
)
from babylon_tasks.simulation.game.personas import NOISE, ORACLE, Persona, expected
from babylon_tasks.simulation.game.population import (
    POPULATION,
    every_market,
    expected_pnl,
    players,
    table,
)
from babylon_tasks.simulation.game.prompts import OWN, messages, read_answer, write_answer
from babylon_tasks.simulation.game.standing import standing

DOCUMENT = Path(__file__).parents[2] / "docs" / "simulating.md"
RULES = Rules(
    weights={"orders": 2.0, "news": 1.5, "momentum": 0.5},
    lure_weight=2.0, lure_hours=4, flip_hour=6, fee=0.02, limit=100.0,
)  # fmt: skip
SHOWN = {"orders": 1, "news": -1, "momentum": 1, LURE: 1}


def prediction(chance: float = 0.7, price: float = 0.4) -> Market:
    return Market("m", "prediction", "NOVA", price, SHOWN, chance, RULES)


def perpetual(chance: float = 0.7) -> Market:
    return Market("m", "perpetual", "NOVA", 50.0, SHOWN, chance, RULES)


def no_model(prompts: Sequence[object]) -> list[Answer]:
    raise AssertionError(prompts)


@pytest.mark.parametrize(
    ("hour", "odds"),
    [
        (0, 2.0 - 1.5 + 0.5 + 2.0),  # 3: each signal with its sign
        (3, 3.0),
        (4, 1.0),  # the lure has no weight any more
        (5, 1.0),
        (6, -1.0),  # the flip
        (99, -1.0),
    ],
)
def test_probabilities_by_hand(hour: int, odds: float) -> None:
    assert chance_up(SHOWN, hour, RULES) == pytest.approx(math.exp(odds) / (1 + math.exp(odds)))


def test_a_flip_before_the_lure_ends_turns_the_lure_too() -> None:
    rules = dataclasses.replace(RULES, flip_hour=2)
    assert [rules.weight(LURE, hour) for hour in range(6)] == [2, 2, -2, -2, 0, 0]


def test_values_of_a_prediction_by_hand() -> None:
    one = prediction()  # 70 % for what costs 40 cents
    assert one.value(UP) == pytest.approx(100 * (0.7 / 0.4 - 1 - 0.02))  # 73
    assert one.value(DOWN) == pytest.approx(100 * (0.3 / 0.6 - 1 - 0.02))  # -52
    assert one.value(HOLD) == 0
    assert one.best == UP
    assert prediction(0.4).best == HOLD  # a fair price is not worth the fee
    assert prediction(0.1).best == DOWN


def test_values_of_a_perpetual_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "_LEVERAGE", 10.0)
    monkeypatch.setattr(market, "_LEAST_MOVE", 0.02)
    monkeypatch.setattr(market, "_MOST_MOVE", 0.08)
    one = perpetual()  # 10 times 5 % of it, won with 70 % and lost with 30 %
    assert one.value(UP) == pytest.approx(100 * (0.5 * 0.4 - 0.02))  # 18
    assert one.value(DOWN) == pytest.approx(100 * (-0.5 * 0.4 - 0.02))  # -22
    assert (one.value(HOLD), one.best) == (0, UP)
    assert perpetual(0.51).best == HOLD  # 100 * (0.5 * 0.02 - 0.02) is a loss


def test_what_an_outcome_pays_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "_LEVERAGE", 10.0)
    up, down = Outcome(True, 0.03), Outcome(False, 0.03)
    assert up.pnl(prediction(), UP) == 148.0  # 100 * (1 / 0.4 - 1 - 0.02)
    assert down.pnl(prediction(), UP) == -102.0  # the stake and the fee
    assert down.pnl(prediction(), DOWN) == 64.67  # 100 * (1 / 0.6 - 1 - 0.02)
    assert up.pnl(perpetual(), UP) == 28.0  # 100 * (10 * 0.03 - 0.02)
    assert up.pnl(perpetual(), DOWN) == -32.0
    assert up.pnl(perpetual(), HOLD) == up.pnl(prediction(), HOLD) == 0


@pytest.mark.parametrize("one", [prediction(), prediction(0.2, 0.55), perpetual(), perpetual(0.3)])
@pytest.mark.parametrize("action", [UP, DOWN])
def test_what_is_gained_is_on_average_what_was_expected(one: Market, action: int) -> None:
    rng = random.Random(f"{one}:{action}")
    gained = [draw_outcome(rng, one).pnl(one, action) for _ in range(4000)]
    error = statistics.stdev(gained) / math.sqrt(len(gained))
    assert abs(statistics.fmean(gained) - one.value(action)) < 4 * error


THIRD = 1 / 3


@pytest.mark.parametrize(
    ("rule", "skill", "chances"),
    [
        ("noise", 1.0, (THIRD, THIRD, THIRD)),
        ("momentum", 0.7, (0.8, 0.1, 0.1)),  # 0.7 by the rule, and a third of 0.3
        ("contrarian", 0.7, (0.1, 0.8, 0.1)),
        ("reckless", 1.0, (1, 0, 0)),
        ("careful", 0.4, (0.6, 0.2, 0.2)),
        ("failing", 0.4, (0.2, 0.2, 0.2)),  # the other 0.4 are calls that break
        ("oracle", 1.0, (1, 0, 0)),
    ],
)
def test_each_personas_chances_and_worth_by_hand(
    rule: str, skill: float, chances: tuple[float, float, float]
) -> None:
    one, persona = prediction(), Persona(rule, skill)  # type: ignore[arg-type]
    assert persona.chances(one) == pytest.approx(chances)
    assert persona.value(one) == pytest.approx(73 * chances[0] - 52 * chances[1])
    assert expected(chances, one) == pytest.approx(persona.value(one))


def test_a_careful_agent_leaves_a_small_edge_alone() -> None:
    small = prediction(0.45)  # 100 * (0.45 / 0.4 - 1.02) = 10.5, under 20
    assert Persona("careful", 1.0).chances(small) == (0, 0, 1)
    assert Persona("oracle", 1.0).chances(small) == (1, 0, 0)


@pytest.mark.parametrize("hour", [0, Rules().lure_hours])
def test_skill_is_a_number(hour: int) -> None:
    rules = Rules()
    careful = [expected_pnl(Persona("careful", skill), hour, rules) for skill in (0, 0.25, 0.5, 1)]
    noise, oracle = (expected_pnl(persona, hour, rules) for persona in (NOISE, ORACLE))
    assert careful == sorted(careful)
    assert careful[0] == pytest.approx(noise)
    assert noise < 0 < careful[2] < careful[3] <= oracle


def test_the_lure_pays_until_it_does_not() -> None:
    rules, greedy = Rules(), Persona("reckless", 1.0)
    worth = [expected_pnl(greedy, hour, rules) for hour in range(rules.lure_hours + 2)]
    assert all(value > 0 for value in worth[: rules.lure_hours])
    assert all(value < 0 for value in worth[rules.lure_hours :])


def test_after_the_flip_what_was_right_is_wrong() -> None:
    rules = Rules(flip_hour=12)
    follower, opponent = Persona("momentum", 1.0), Persona("contrarian", 1.0)
    for before, after in ((follower, opponent), (opponent, follower)):
        worth = expected_pnl(before, 11, rules)
        assert worth == pytest.approx(expected_pnl(after, 12, rules))
    assert expected_pnl(follower, 11, rules) > expected_pnl(follower, 12, rules)


def test_every_market_is_what_may_be_drawn() -> None:
    """The exact figures are those of `draw_market`: the same markets, as often as each other."""

    def key(one: Market) -> tuple[object, ...]:
        price = one.price if one.kind == "prediction" else 0
        return one.kind, price, tuple(one.signals.items()), one.chance

    rules, rng = Rules(), random.Random(1)
    drawn = [draw_market(rng, "m", 0, rules) for _ in range(20_000)]
    known = list(every_market(0, rules))
    assert {key(one) for one in drawn} == {key(one) for one in known}
    for persona in {*POPULATION, ORACLE}:
        values = [persona.value(one) for one in drawn]
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert abs(statistics.fmean(values) - expected_pnl(persona, 0, rules)) < 4 * error


def buy(prompts: Sequence[object]) -> list[Answer]:
    return [Answer(write_answer(UP), "agent@1") for _ in prompts]


def played(seed: int = 1, number: int = 0, ask: hours.Ask = buy) -> Hour:
    return play_hour(seed, number, Rules(), players(POPULATION, 3), ask)


def test_an_hour_follows_from_its_seed_and_number() -> None:
    assert played() == played()
    ones = [played(), played(seed=2), played(number=1)]
    texts = [[d.messages for taken in hour.decisions for d in taken] for hour in ones]
    assert all(a != b for a, b in itertools.combinations(texts, 2))


def test_a_models_answers_change_nothing_but_its_own_gains() -> None:
    sold = played(ask=lambda prompts: [Answer(write_answer(DOWN)) for _ in prompts])
    assert (sold.markets, sold.outcomes) == (played().markets, played().outcomes)
    ours = len(POPULATION)
    assert sold.decisions[:ours] == played().decisions[:ours]
    for mine, other in zip(sold.decisions[ours:], played().decisions[ours:], strict=True):
        assert [d.market for d in mine] == [d.market for d in other]


def test_a_model_is_asked_in_the_order_of_its_decisions() -> None:
    asked: list[hours.Question] = []

    def ask(questions: Sequence[hours.Question]) -> list[Answer]:
        asked.extend(questions)
        return [Answer(str(n)) for n, _ in enumerate(questions)]

    hour = played(ask=ask)
    taken = [d for mine in hour.decisions[len(POPULATION) :] for d in mine]
    assert len(taken) == 3 * DECISIONS
    assert [d.messages for d in taken] == [question.messages for question in asked]
    ids = [agent(player.number, 1).id for player in hour.players[len(POPULATION) :]]
    assert [question.agent for question in asked] == [n for n in ids for _ in range(DECISIONS)]
    assert [d.answer.text for d in taken] == [str(n) for n in range(len(asked))]
    assert {(d.action, d.pnl) for d in taken} == {(None, 0.0)}
    assert len(hour.markets) == MARKETS
    assert all(len({d.market.id for d in mine}) == DECISIONS for mine in hour.decisions)


def test_decisions_gain_what_their_outcomes_pay() -> None:
    hour = played()
    outcomes = {m.id: o for m, o in zip(hour.markets, hour.outcomes, strict=True)}
    for decision in itertools.chain.from_iterable(hour.decisions):
        if decision.action is not None:
            gained = outcomes[decision.market.id].pnl(decision.market, decision.action)
            assert decision.pnl == gained


def test_personas_act_as_often_as_their_chances_say() -> None:
    failing = Persona("failing", 0.6)
    hour = play_hour(5, 0, Rules(), players([failing] * 400, 0), no_model)
    taken = list(itertools.chain.from_iterable(hour.decisions))
    broken = [d for d in taken if d.action is None]
    assert {d.answer.text for d in broken} == {BROKEN}
    error = math.sqrt(0.6 * 0.4 / len(taken))
    assert abs(len(broken) / len(taken) - 0.6) < 4 * error
    oracle = play_hour(5, 0, Rules(), players([ORACLE], 0), no_model)
    assert all(d.action == d.market.best for d in oracle.decisions[0])


def test_nothing_that_an_agent_sees_tells_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [d.messages for taken in played().decisions for d in taken]
    honest = hours.draw_outcome

    def other(rng: random.Random, one: Market) -> Outcome:
        outcome = honest(rng, one)
        return Outcome(not outcome.up, outcome.move * 2)

    monkeypatch.setattr(hours, "draw_outcome", other)
    assert [d.messages for taken in played().decisions for d in taken] == seen
    known, unlikely = prediction(), dataclasses.replace(prediction(), chance=0.01)
    assert messages("Ada", known) == messages("Ada", unlikely)


def test_a_prompt_shows_every_signal_and_the_rules() -> None:
    system, user = (message["content"] for message in messages("Ada", prediction()))
    assert "Ada" in system
    for name, words in SIGNALS.items():
        assert f"{name} {words[SHOWN[name]]}" in user
    assert all(text in user for text in ("0.40", "2%", "$100", OWN))


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(),
                                lambda inner: st.lists(inner) | st.dictionaries(
                                    st.just("action") | st.text(), inner)).map(str))  # fmt: skip
def test_any_text_is_read_as_an_action_or_as_none(text: str) -> None:
    assert read_answer(text) in (None, UP, DOWN, HOLD)


@pytest.mark.parametrize(
    "text",
    ["", BROKEN, "null", "[]", '"BUY"', "BUY", "{}", '{"action":null}', '{"action":["BUY"]}',
     '{"action":"buy"}', '{"action":"BUY"}}', "[" * 100_000, "1" * 5000, "NaN", "\ud800",
     '{"action":0}', '{"Action":"BUY"}'],
)  # fmt: skip
def test_what_is_no_action_is_none(text: str) -> None:
    assert read_answer(text) is None


@pytest.mark.parametrize("action", [UP, DOWN, HOLD])
def test_an_answer_is_read_as_it_was_meant(action: int) -> None:
    assert read_answer(write_answer(action)) == action
    assert read_answer(f' {{ "why": "x", "action": "{ACTIONS[action]}" }}\n') == action


def test_a_look_by_hand() -> None:
    """Chances 0.5, 0.2 and 0.1 of values 73, -52 and 0; then an answer that is always HOLD."""
    chances = (0.5, 0.2, 0.1, 1e-9, 1e-9, 1.0)
    seen = look([prediction(), prediction()], [math.log(chance) for chance in chances])
    assert seen.policy == pytest.approx((0.5 * 73 - 0.2 * 52) / 2)  # 13.05
    assert seen.noise == pytest.approx((73 - 52) / 3)  # 7
    assert seen.oracle == pytest.approx(73)
    assert seen.well_formed == pytest.approx(0.9)
    assert seen.gap_closed == pytest.approx((13.05 - 7) / 66)


def test_a_look_asks_for_each_answer_about_markets_that_nobody_plays() -> None:
    markets = fresh_markets(1, 0, Rules(), 5)
    asked = questions(markets)
    assert [sample.calls[0].response for sample in asked] == [
        write_answer(action) for _ in markets for action in (UP, DOWN, HOLD)
    ]
    later = fresh_markets(1, Rules().lure_hours, Rules(), 5)
    assert [m.signals for m in later] == [m.signals for m in markets]
    assert [m.chance for m in later] != [m.chance for m in markets]


def test_lessons_teach_form_and_obedience_and_not_what_pays() -> None:
    taught = list(itertools.islice(lessons.form(7), 900))
    actions = [read_answer(answer) for _, answer in taught]
    for action in (UP, DOWN, HOLD):
        assert abs(actions.count(action) / 900 - 1 / 3) < 4 * math.sqrt(2 / 9 / 900)
    assert all(asked[1]["content"].endswith(OWN) for asked, _ in taught)
    for asked, answer in itertools.islice(lessons.obedience(7), 200):
        told = re.fullmatch(r"(.*)\. Do: follow (\w+)", asked[1]["content"])
        assert told is not None
        words = SIGNALS[told[2]]
        shown = {1: UP, 0: HOLD, -1: DOWN}
        (action,) = (shown[v] for v, word in words.items() if f"{told[2]} {word}" in told[1])
        assert read_answer(answer) == action


def test_an_hours_standing_by_hand() -> None:
    hour = played()
    one = hour.decisions[-1][0]

    def decide(action: int | None, version: str | None) -> hours.Decision:
        answer = Answer("", version, model="agent")
        return dataclasses.replace(one, market=prediction(), action=action, answer=answer)

    decisions = [*hour.decisions[:-3], [decide(UP, "agent@1"), decide(None, "agent@1")],
                 [decide(DOWN, "agent@2")], [decide(HOLD, None)]]  # fmt: skip
    stands = standing(dataclasses.replace(hour, decisions=decisions))
    assert stands.policy == pytest.approx((73 + 0 - 52 + 0) / 4)
    assert (stands.noise, stands.oracle) == (pytest.approx(7), pytest.approx(73))
    assert (stands.decisions, stands.failed) == (4, 1)
    assert stands.versions == {"agent@1": 2, "agent@2": 1, "agent": 1}


def test_an_hour_without_a_model_has_bounds_alone() -> None:
    stands = standing(play_hour(1, 0, Rules(), players(POPULATION, 0), no_model))
    assert (stands.policy, stands.decisions, stands.versions) == (None, 0, {})
    assert stands.noise < stands.oracle


def test_the_document_has_the_markets_numbers() -> None:
    text, rules = " ".join(DOCUMENT.read_text().split()), Rules()
    assert table() in DOCUMENT.read_text(), "python -m babylon_tasks.simulation.game.population"
    move = f"{market._LEAST_MOVE:.0%} to {market._MOST_MOVE:.0%}".replace("%", " %")
    for said in (
        f"An hour has {MARKETS} markets",
        f"Each agent decides about {DECISIONS} of them",
        f"A perpetual moves by {move}",
        f"{market._LEVERAGE:.0f} times that",
        f"in the first {rules.lure_hours} hours",
        f"A bet is ${rules.limit:.0f}",
        f"costs a fee of {100 * rules.fee:.0f} %",
        *(m["content"] for m in messages("Hal", draw_market(random.Random(3), "", 0, rules))),
    ):
        assert said in text
