"""Rows as Babylon writes them, made up from a seed: for the demo, the benchmarks and the tests.

The market is simple on purpose. Momentum stands in the prompt and says the outcome nine times in
ten, an agent's skill is how often it bets with the momentum, and money follows the outcome. So
what a model can learn from these rows is known: side YES when momentum is up, NO when it is down.

Which windows come out, in UTC hours before `now`'s hour (`0` is the unfinished one):
`2 … windows + 1` good, and with `odd=True` one without signal, one with too few agents and the
unfinished hour, beside rows that are malformed, strange but valid, or must never count.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg

Kind = Literal["good", "no_signal", "too_few", "unfinished"]
Malformed = Literal["truncated", "null", "empty", "step_not_object", "pnl_is_text"]
Odd = Literal[
    "string_numbers", "missing_state", "many_calls", "no_calls", "unicode",
    "lone_surrogate", "nul_escape", "repeated_agent", "scenario_only", "scenario_prefix",
]  # fmt: skip
NeverCounts = Literal["not_training_data", "evaluation", "benchmark"]
Json = dict[str, Any]

MALFORMED: tuple[Malformed, ...] = (
    "truncated", "null", "empty", "step_not_object", "pnl_is_text",
)  # fmt: skip
ODD: tuple[Odd, ...] = (
    "string_numbers", "missing_state", "many_calls", "no_calls", "unicode",
    "lone_surrogate", "nul_escape", "repeated_agent", "scenario_only", "scenario_prefix",
)  # fmt: skip
NEVER_COUNTS: tuple[NeverCounts, ...] = ("not_training_data", "evaluation", "benchmark")

_START_BALANCE = 10_000.0
_FLAT_STEPS = 6
_FLAT_PNL = 84.0
_TRAP_PNL = 5_000.0  # P&L of rows that never count: whoever counts them sees it in the scores
_MOMENTUM_TELLS = 0.9
_EPOCH_MS = 1_704_067_200_000  # the app's snowflakes count from 2024-01-01
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

_NAMES = ("Ada", "Bo", "Cleo", "Dov", "Eve", "Finn", "Gia", "Hal", "Ines", "Jax", "Kim", "Lou")
_PERSONAS = (
    "You are a momentum trader on Babylon's prediction markets. You act fast and keep risk small.",
    "You are a patient analyst. You read the order book before you act, size positions carefully "
    "and leave a market alone when you see no edge in it.",
    "You are a bold speculator with strong opinions about every market.",
    "You are a contrarian who knows when the crowd is right. You manage risk, never bet the whole "
    "balance, write down why you act, and answer only in the form you are asked for.",
)
_STRATEGIES = ("follow momentum", "fade extremes", "news first", "small and often")
_TICKERS = ("NOVA", "KITE", "ORBX", "LUMA", "PYRE", "ZETA", "HELI", "MOSS")
_EVENTS = (
    "{ticker} close above ${level} this hour", "{ticker} announce a merger today",
    "{ticker} beat its forecast", "the council back {ticker}'s permit",
)  # fmt: skip
_AMOUNTS = (50, 75, 100, 150)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent; the same index is the same agent in every window and for every seed."""

    id: str
    username: str
    display_name: str
    system_prompt: str
    strategy: str
    skill: float  # probability of betting with the momentum


@dataclass(frozen=True, slots=True)
class Market:
    """A prediction market of one window, and (unseen by agents) its outcome."""

    id: str
    question: str
    yes_price: float  # dollars, 0 to 1
    momentum: float  # percent
    outcome: bool  # YES


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call: what was asked and what was answered."""

    system_prompt: str
    user_prompt: str
    response: str
    purpose: str
    action: str


@dataclass(frozen=True, slots=True)
class Question:
    """A fresh prompt with one market, and the side its momentum speaks for."""

    system_prompt: str
    user_prompt: str
    right_side: str


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """A row of `trajectories`; columns not named here keep their defaults."""

    id: str
    trajectory_id: str
    agent_id: str
    start_time: datetime
    end_time: datetime
    duration_ms: int
    window_id: str | None
    scenario_id: str
    episode_id: str
    steps_json: str
    reward_components_json: str
    metrics_json: str
    metadata_json: str
    total_reward: float
    episode_length: int
    final_status: str
    final_balance: float
    final_pnl: float
    trades_executed: int
    posts_created: int
    is_training_data: bool
    is_evaluation: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """A row of `market_outcomes`: of a stock or of a prediction market."""

    id: str
    window_id: str
    stock_ticker: str | None
    start_price: float | None
    end_price: float | None
    change_percent: float | None
    sentiment: str | None
    prediction_market_id: str | None
    question: str | None
    outcome: str | None
    final_probability: float | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WindowRows:
    """All rows of one window; the three mappings are by `trajectoryId`."""

    window_id: str
    kind: Kind
    agents: tuple[Agent, ...]
    trajectories: tuple[TrajectoryRow, ...]
    outcomes: tuple[OutcomeRow, ...]
    malformed: Mapping[str, Malformed]
    odd: Mapping[str, tuple[Odd, ...]]
    never_counts: Mapping[str, NeverCounts]


@dataclass(frozen=True, slots=True)
class Summary:
    """What `write` was given, to compare an outcome against."""

    good_windows: tuple[str, ...]
    no_signal_windows: tuple[str, ...]
    too_few_windows: tuple[str, ...]
    unfinished_windows: tuple[str, ...]
    agents: int
    trajectories: int  # rows of every sort
    good_trajectories: int  # rows of good windows that count and can be parsed
    malformed: Mapping[str, Malformed]
    never_counts: Mapping[str, NeverCounts]
    market_outcomes: int
    inserted: int  # new rows of `trajectories`; 0 when the same was written before


@dataclass(frozen=True, slots=True)
class _Turn:
    """What an agent did in a step, before it is written out."""

    market: Market
    action: str
    side: str  # YES, NO or empty
    amount: int  # dollars
    success: bool
    pnl: float  # dollars, as the agent saw it before it acted
    gain: float  # dollars, seen from the next step on


def simulate(
    windows: int,
    agents: int,
    seed: int,
    now: datetime,
    *,
    odd: bool = True,
    steps_bytes: int = 0,
) -> Iterator[WindowRows]:
    """Make the rows of each window, oldest window first; the same arguments make the same rows.

    Args:
        windows: Good windows, at least 1; the newest is two hours before `now`'s hour.
        agents: Agents of a good window, at least 2; each has a row of its own there.
        seed: Of everything random.
        now: Naive means UTC.
        odd: Also the special windows and the malformed, strange and never counting rows.
        steps_bytes: Grow each `stepsJson` to about this size (UTF-8 bytes); 0: leave it alone.
    """
    if windows < 1 or agents < 2:
        raise ValueError("simulate needs at least 1 window and 2 agents")
    now = now.astimezone(UTC).replace(tzinfo=None) if now.tzinfo else now
    hour = now.replace(minute=0, second=0, microsecond=0)
    kinds: list[tuple[int, Kind]] = [(back, "good") for back in range(windows + 1, 1, -1)]
    if odd:
        kinds = [(windows + 3, "too_few"), (windows + 2, "no_signal"), *kinds, (0, "unfinished")]
    for back, kind in kinds:
        start = hour - timedelta(hours=back)
        end = min(start + timedelta(hours=1), max(now, start + timedelta(seconds=1)))
        maker = _WindowMaker(start, end, kind, seed, agents, steps_bytes)
        specials = (_share(MALFORMED, back, windows), _share(ODD, back, windows))
        if not odd or kind != "good":
            specials = ((), ())
        yield maker.rows(*specials, traps=odd and kind in ("good", "too_few"))


def write(connection: psycopg.Connection[Any], windows: Iterable[WindowRows]) -> Summary:
    """Insert the rows into Babylon's own tables, one transaction a window.

    Writing the same rows twice changes nothing.
    """
    by_kind: dict[Kind, list[str]] = {"good": [], "no_signal": [], "too_few": [], "unfinished": []}
    malformed: dict[str, Malformed] = {}
    never_counts: dict[str, NeverCounts] = {}
    agents: set[str] = set()
    trajectories = good = outcomes = inserted = 0
    for window in windows:
        inserted += _write_window(connection, window)
        by_kind[window.kind].append(window.window_id)
        malformed |= window.malformed
        never_counts |= window.never_counts
        agents |= {agent.id for agent in window.agents}
        trajectories += len(window.trajectories)
        outcomes += len(window.outcomes)
        if window.kind == "good":
            good += len(window.trajectories) - len(window.malformed) - len(window.never_counts)
    return Summary(
        good_windows=tuple(by_kind["good"]),
        no_signal_windows=tuple(by_kind["no_signal"]),
        too_few_windows=tuple(by_kind["too_few"]),
        unfinished_windows=tuple(by_kind["unfinished"]),
        agents=len(agents),
        trajectories=trajectories,
        good_trajectories=good,
        malformed=malformed,
        never_counts=never_counts,
        market_outcomes=outcomes,
        inserted=inserted,
    )


def question(seed: int) -> Question:
    """A prompt of the kind the agents get most often, with a market none of them met."""
    rng = _rng("question", seed)
    market = _market(rng, "0", rng.choice((-1, 1)) * rng.uniform(2, 9))
    turn = _Turn(market, "BUY_SHARES", "", 0, True, 0.0, 0.0)
    user = _short_prompt(agent(seed % 12, seed), turn, open_positions=0)
    return Question(_PERSONAS[0], user, _right_side(market))


def calls(seed: int, skill: float) -> Iterator[Call]:
    """Endless LLM calls of agents of one skill (probability), for a supervised start."""
    rng = _rng("calls", seed)
    for index in itertools.count():
        player = dataclasses.replace(agent(index, seed), skill=skill)
        markets = [_market(rng, str(n), m) for n, m in enumerate(_momenta(rng))]
        for number, turn in enumerate(_play(rng, markets, player)):
            yield from _calls(rng, markets, player, turn, number)


def agent(index: int, seed: int) -> Agent:
    """Agent `index`; only its skill (0.2 to 0.9) depends on the seed."""
    first = _NAMES[index % len(_NAMES)]
    spread = (index * 0.618034 + _rng("skill", seed).random()) % 1
    return Agent(
        id=_snowflake(_EPOCH_MS + 31_536_000_000 + index, 7, 0),
        username=f"sim-agent-{index:04d}",
        display_name=f"{first} {index:04d}",
        system_prompt=_PERSONAS[index % len(_PERSONAS)],
        strategy=_STRATEGIES[index // len(_PERSONAS) % len(_STRATEGIES)],
        skill=round(0.2 + 0.7 * spread, 3),
    )


# --- what happens in a window ---


def _momenta(rng: random.Random) -> list[float]:
    """Momentum of a window's markets in percent: six that tell something, one that is flat."""
    return [rng.choice((-1, 1)) * rng.uniform(1.5, 9) for _ in range(6)] + [rng.uniform(-0.3, 0.3)]


def _market(rng: random.Random, market_id: str, momentum: float) -> Market:
    event = rng.choice(_EVENTS).format(ticker=rng.choice(_TICKERS), level=rng.randrange(40, 200, 5))
    told = rng.random() < _MOMENTUM_TELLS
    return Market(
        id=market_id,
        question=f"Will {event}?",
        yes_price=round(rng.uniform(0.3, 0.7), 2),
        momentum=round(momentum, 1),
        outcome=(momentum > 0) == told,
    )


def _right_side(market: Market) -> str:
    return "YES" if market.momentum > 0 else "NO"


def _play(rng: random.Random, markets: Sequence[Market], player: Agent) -> list[_Turn]:
    """3 to 12 steps; the first is a bet, and what the last one gains is not seen any more."""
    turns: list[_Turn] = []
    pnl = 0.0
    for number in range(rng.randint(3, 12)):
        actions = ("BUY_SHARES", "SELL_SHARES", "HOLD", "CREATE_POST", "COMMENT")
        action = rng.choices(actions, (62, 8, 10, 10, 10))[0] if number else "BUY_SHARES"
        turn = _turn(rng, markets, player, action, pnl)
        turns.append(turn)
        pnl = round(pnl + turn.gain, 2)
    return turns


def _turn(
    rng: random.Random, markets: Sequence[Market], player: Agent, action: str, pnl: float
) -> _Turn:
    market = markets[-1] if action == "HOLD" else rng.choice(markets[:-1])
    if action not in ("BUY_SHARES", "SELL_SHARES"):
        return _Turn(market, action, "", 0, True, pnl, 0.0)
    up = (market.momentum > 0) == (rng.random() < player.skill)
    bought = up if action == "BUY_SHARES" else not up
    amount = rng.choice(_AMOUNTS)
    success = rng.random() < 0.95
    won = up == market.outcome
    gain = amount * (rng.uniform(0.6, 1.0) if won else -rng.uniform(0.6, 1.0)) if success else 0.0
    return _Turn(market, action, "YES" if bought else "NO", amount, success, pnl, round(gain, 2))


def _steady_play(
    rng: random.Random, markets: Sequence[Market], player: Agent, final_pnl: float
) -> list[_Turn]:
    """A play whose length and P&L (dollars) are the same for everyone."""
    path = [round(final_pnl * n / (_FLAT_STEPS - 1), 2) for n in range(_FLAT_STEPS)]
    return [
        dataclasses.replace(_turn(rng, markets, player, "BUY_SHARES", pnl), success=True)
        for pnl in path
    ]


def _has_signal(plays: Sequence[tuple[Agent, list[_Turn]]]) -> bool:
    """Whether some agent gained and some agent lost over all its trajectories."""
    sums: dict[str, float] = {}
    for player, turns in plays:
        sums[player.id] = sums.get(player.id, 0.0) + turns[-1].pnl
    return max(sums.values()) > 0 > min(sums.values())


# --- what the agents are asked, and answer ---


def _short_prompt(player: Agent, turn: _Turn, open_positions: int) -> str:
    market = turn.market
    return (
        f"You are {player.display_name}. Strategy: {player.strategy}\n"
        f"Balance: ${_START_BALANCE + turn.pnl:.2f}, P&L: ${turn.pnl:.2f}, "
        f"open positions: {open_positions}\n\n"
        f"Market: {market.question}\n{_quote(market)}\n\n"
        "Answer with one action in JSON."
    )


def _long_prompt(player: Agent, markets: Sequence[Market], turn: _Turn, open_positions: int) -> str:
    others = [m for m in markets if m is not turn.market][:3]
    listed = "\n".join(f"- {m.question} {_quote(m)}" for m in [*others, turn.market])
    return (
        f"You are {player.display_name}, an autonomous trading agent.\n"
        f"Trading strategy: {player.strategy}\n"
        f"Balance: ${_START_BALANCE + turn.pnl:.2f}\nP&L: ${turn.pnl:.2f}\n"
        f"Open positions: {open_positions}\n\nPrediction markets:\n{listed}\n\n"
        "Decide on the last one. Trade only with conviction. Answer with one action in JSON."
    )


def _quote(market: Market) -> str:
    yes = market.yes_price
    return f"YES {yes:.2f}, NO {1 - yes:.2f}, momentum {market.momentum:+.1f}%"


def _answer(turn: _Turn) -> str:
    answer: Json = {"action": turn.action}
    if turn.side:
        up = turn.market.momentum > 0
        with_it = (turn.side == _right_side(turn.market)) == (turn.action == "BUY_SHARES")
        reason = f"momentum is {'up' if up else 'down'}" if with_it else "it will turn"
        answer |= {"side": turn.side, "amount": turn.amount, "reason": reason}
    else:
        answer["reason"] = "no edge"
    return json.dumps(answer, separators=(",", ":"))


def _calls(
    rng: random.Random, markets: Sequence[Market], player: Agent, turn: _Turn, number: int
) -> list[Call]:
    """One or two calls of a step: sometimes a thought first, then the action or the text."""
    system, market = player.system_prompt, turn.market
    if turn.action in ("CREATE_POST", "COMMENT"):
        what = "post" if turn.action == "CREATE_POST" else "comment"
        user = (
            f"You are {player.display_name}. Write one short {what} for the Babylon feed, under "
            f"280 characters, about this market: {market.question} {_quote(market)}"
        )
        mood = "climbing" if market.momentum > 0 else "slipping"
        text = f"{market.question} Momentum is {mood}, so mind your risk."
        return [Call(system, user, text, "response", turn.action)]
    open_positions = min(number, 4)
    user = _short_prompt(player, turn, open_positions)
    if rng.random() < 0.25:
        user = _long_prompt(player, markets, turn, open_positions)
    result = [Call(system, user, _answer(turn), "action", turn.action)]
    if rng.random() < 0.2:
        asked = f"Which way does this market lean, and why?\n{market.question}\n{_quote(market)}"
        lean = "up, so YES looks likely" if market.momentum > 0 else "down, so NO looks likely"
        result.insert(0, Call(system, asked, f"Momentum is {lean}.", "reasoning", turn.action))
    return result


# --- the rows ---


class _WindowMaker:
    """Writes one window's rows; every draw and every id comes from the window's own sequence."""

    def __init__(
        self, start: datetime, end: datetime, kind: Kind, seed: int, agents: int, steps_bytes: int
    ) -> None:
        self.start, self.end, self.kind = start, end, kind
        self.window_id = f"{start:%Y-%m-%dT%H}:00"
        self.seed, self.agents, self.steps_bytes = seed, agents, steps_bytes
        self.rng = _rng("window", seed, self.window_id)
        self._ids = itertools.count()
        self.markets = [_market(self.rng, self._id(), m) for m in _momenta(self.rng)]
        self.feed = _feed(self.rng) if steps_bytes else []

    def rows(
        self, malformed: Sequence[Malformed], odd: Sequence[Odd], *, traps: bool
    ) -> WindowRows:
        """The window's rows: the agents' own, then malformed ones, then those that never count."""
        plays = self._plays("repeated_agent" in odd)
        notes: dict[int, list[Odd]] = {}
        for index, what in enumerate(odd):
            # The repeated agent is the last row; the other oddities go round the agents.
            at = len(plays) - 1 if what == "repeated_agent" else index % self.agents
            notes.setdefault(at, []).append(what)
        trajectories = [
            self._trajectory(player, turns, odd=notes.get(at, ()))
            for at, (player, turns) in enumerate(plays)
        ]
        odd_ids = {trajectories[at].trajectory_id: tuple(what) for at, what in notes.items()}
        bad = [(self._malformed(agent(self.agents, self.seed), what), what) for what in malformed]
        never = [(self._never_counts(what), what) for what in (NEVER_COUNTS if traps else ())]
        rows = (*trajectories, *(row for row, _ in bad), *(row for row, _ in never))
        used = {row.agent_id for row in rows}
        known = (agent(index, self.seed) for index in range(self.agents + 1))
        return WindowRows(
            window_id=self.window_id,
            kind=self.kind,
            agents=tuple(player for player in known if player.id in used),
            trajectories=rows,
            outcomes=() if self.kind == "unfinished" else tuple(self._outcomes()),
            malformed={row.trajectory_id: what for row, what in bad},
            odd=odd_ids,
            never_counts={row.trajectory_id: what for row, what in never},
        )

    def _plays(self, repeated_agent: bool) -> list[tuple[Agent, list[_Turn]]]:
        """Each agent's steps; a good window is drawn until somebody wins and somebody loses."""
        count = 1 if self.kind == "too_few" else self.agents
        players = [agent(index, self.seed) for index in range(count)]
        if repeated_agent:
            players.append(players[-1])
        if self.kind == "no_signal":
            return [(p, _steady_play(self.rng, self.markets, p, _FLAT_PNL)) for p in players]
        for _ in range(1000):
            plays = [(p, _play(self.rng, self.markets, p)) for p in players]
            if self.kind != "good" or _has_signal(plays):
                return plays
            # All markets may favour one side; other outcomes make other winners.
            self.markets = [
                dataclasses.replace(m, outcome=self.rng.random() < 0.5) for m in self.markets
            ]
        raise AssertionError("no draw had both a winner and a loser")

    def _trajectory(
        self, player: Agent, turns: Sequence[_Turn], odd: Sequence[Odd] = ()
    ) -> TrajectoryRow:
        start, end = self._times()
        steps = self._steps(player, turns, start, end)
        for what in odd:
            _ODDITIES.get(what, _leave)(steps)
        self._grow(steps)
        total = round(sum(step["reward"] for step in steps), 4)
        errors = sum(not turn.success for turn in turns)
        trades = sum("BUY" in turn.action or "SELL" in turn.action for turn in turns)
        posts = sum("POST" in turn.action for turn in turns)
        status = "completed_with_errors" if errors else "completed"
        pnl = turns[-1].pnl
        scenario = self.window_id + ("-btc" if "scenario_prefix" in odd else "")
        in_scenario_only = "scenario_only" in odd or "scenario_prefix" in odd
        metrics = {
            "episodeLength": len(turns),
            "finalStatus": status,
            "finalBalance": _number(_START_BALANCE + pnl),
            "finalPnL": _number(pnl),
            "tradesExecuted": trades,
            "postsCreated": posts,
            "errorCount": errors,
        }
        return TrajectoryRow(
            id=self._id(),
            trajectory_id=self._id(),
            agent_id=player.id,
            start_time=start,
            end_time=end,
            duration_ms=_milliseconds(end - start),
            window_id=None if in_scenario_only else self.window_id,
            scenario_id=scenario,
            episode_id=f"{scenario}-{_unix_ms(end)}",
            steps_json=_dump(steps),
            reward_components_json=_dump({"environmentReward": _number(total)}),
            metrics_json=_dump(metrics),
            metadata_json=_dump({"isTrainingData": True, "gameKnowledge": self._future()}),
            total_reward=total,
            episode_length=len(turns),
            final_status=status,
            final_balance=round(_START_BALANCE + pnl, 2),
            final_pnl=pnl,
            trades_executed=trades,
            posts_created=posts,
            is_training_data=True,
            is_evaluation=False,
            updated_at=end,
        )

    def _malformed(self, player: Agent, what: Malformed) -> TrajectoryRow:
        """A row whose `stepsJson` nothing can be learned from."""
        row = self._trajectory(player, _play(self.rng, self.markets, player))
        steps = json.loads(row.steps_json)
        if what == "step_not_object":
            steps[1] = "HOLD"
        if what == "pnl_is_text":
            steps[-1]["environmentState"]["agentPnL"] = "abc"
        texts: dict[Malformed, str] = {
            "truncated": row.steps_json[: len(row.steps_json) * 2 // 3],
            "null": "null",
            "empty": "[]",
        }
        return dataclasses.replace(row, steps_json=texts.get(what, _dump(steps)))

    def _never_counts(self, what: NeverCounts) -> TrajectoryRow:
        """A row of the second agent that no scoring may see; its P&L would give it away."""
        player = agent(1, self.seed)
        row = self._trajectory(player, _steady_play(self.rng, self.markets, player, _TRAP_PNL))
        if what == "benchmark":
            return dataclasses.replace(row, scenario_id=f"benchmark-{self.window_id}")
        if what == "evaluation":
            return dataclasses.replace(row, is_evaluation=True)
        return dataclasses.replace(row, is_training_data=False)

    def _steps(
        self, player: Agent, turns: Sequence[_Turn], start: datetime, end: datetime
    ) -> list[Json]:
        version = self.rng.choice((None, None, "v1.0.2", "v1.0.3"))
        apart = (_unix_ms(end) - _unix_ms(start)) // len(turns)
        return [
            {
                "stepNumber": number,
                "timestamp": _unix_ms(start) + number * apart,
                "environmentState": {
                    "agentBalance": _number(_START_BALANCE + turn.pnl),
                    "agentPnL": _number(turn.pnl),
                    "openPositions": min(number, 4),
                    "activeMarkets": len(self.markets),
                },
                "providerAccesses": self._providers(turn),
                "llmCalls": [
                    self._call(call, version)
                    for call in _calls(self.rng, self.markets, player, turn, number)
                ],
                "action": _action(turn),
                "reward": _reward(turn),
            }
            for number, turn in enumerate(turns)
        ]

    def _providers(self, turn: _Turn) -> list[Json]:
        markets = [
            {
                "id": m.id,
                "question": m.question,
                "yesShares": round(1000 * (1 - m.yes_price)),
                "noShares": round(1000 * m.yes_price),
                "liquidity": 1000,
            }
            for m in self.markets
        ]
        portfolio = {
            "balance": _number(_START_BALANCE + turn.pnl),
            "positions": [],
            "pnl": _number(turn.pnl),
        }
        return [
            {
                "providerName": "BABYLON_MARKETS",
                "data": {"markets": markets},
                "purpose": "Prices for the trading decision",
            },
            {
                "providerName": "BABYLON_PORTFOLIO",
                "data": portfolio,
                "purpose": "Holdings before trading",
            },
        ]

    def _call(self, call: Call, version: str | None) -> Json:
        record: Json = {
            "model": f"babylon-agent-{version}" if version else "llama-3.1-8b",
            "systemPrompt": call.system_prompt,
            "userPrompt": call.user_prompt,
            "response": call.response,
            "temperature": 0.7,
            "maxTokens": 300,
            "latencyMs": self.rng.randint(180, 900),
            "purpose": call.purpose,
            "actionType": call.action,
        }
        if version:
            record["modelVersion"] = version
        if call.purpose == "action" and self.rng.random() < 0.3:
            record["reasoning"] = "Momentum and price were weighed."
        return record

    def _grow(self, steps: list[Json]) -> None:
        """Add feed posts to the steps until they are about `steps_bytes` long."""
        missing = self.steps_bytes - len(_dump(steps).encode()) if self.steps_bytes else 0
        if missing <= 0:
            return
        post_bytes = len(_dump(self.feed).encode()) / len(self.feed)
        posts_per_step = max(1, round(missing / post_bytes / len(steps)))
        for step in steps:
            first = self.rng.randrange(len(self.feed))
            endless = itertools.cycle(self.feed)
            posts = list(itertools.islice(endless, first, first + posts_per_step))
            step["providerAccesses"].append(
                {"providerName": "SOCIAL_FEED", "data": {"posts": posts}, "purpose": "Feed context"}
            )

    def _future(self) -> Json:
        """What only the game knows: never to be shown to the model that is trained."""
        return {
            "trueProbabilities": {m.id: 0.9 if m.outcome else 0.1 for m in self.markets},
            "actualOutcomes": {m.id: "YES" if m.outcome else "NO" for m in self.markets},
            "futureOutcomes": {},
        }

    def _outcomes(self) -> Iterator[OutcomeRow]:
        """Stocks and predictions, written within five minutes of the window's end."""
        at = self.start + timedelta(hours=1, seconds=self.rng.randint(5, 290))
        for ticker in _TICKERS[:3]:
            before = round(self.rng.uniform(20, 200), 2)
            after = round(before * self.rng.uniform(0.94, 1.06), 2)
            change = round((after - before) / before * 100, 2)
            mood = "BULLISH" if change > 0 else "BEARISH"
            yield OutcomeRow(
                self._id(), self.window_id, ticker, before, after, change, mood,
                None, None, None, None, at,
            )  # fmt: skip
        for market in self.markets:
            sure = round(self.rng.uniform(0.8, 0.98), 4)
            probability = sure if market.outcome else round(1 - sure, 4)
            yield OutcomeRow(
                self._id(), self.window_id, None, None, None, None, None,
                market.id, market.question, "YES" if market.outcome else "NO", probability, at,
            )  # fmt: skip

    def _times(self) -> tuple[datetime, datetime]:
        whole = _milliseconds(self.end - self.start)
        first = self.rng.randrange(whole // 2)
        last = self.rng.randrange(first + whole // 4, whole)
        return self.start + timedelta(milliseconds=first), self.start + timedelta(milliseconds=last)

    def _id(self) -> str:
        """The next id of this window: unique in it, and different for another seed."""
        number = next(self._ids)
        return _snowflake(_unix_ms(self.start) + number // 4096, self.seed % 1024, number % 4096)


def _action(turn: _Turn) -> Json:
    """The action with its result and correctness: both tell the future."""
    parameters: Json = {}
    result: Json = {"held": True}
    if turn.side:
        parameters = {"marketId": turn.market.id, "side": turn.side, "amount": turn.amount}
        price = turn.market.yes_price if turn.side == "YES" else 1 - turn.market.yes_price
        result = {"shares": round(turn.amount / price, 2), "avgPrice": round(price, 2)}
    elif turn.action != "HOLD":
        result = {"contentLength": 80}
    action: Json = {
        "actionType": turn.action,
        "parameters": parameters,
        "success": turn.success,
        **({"result": result} if turn.success else {"error": "Insufficient balance"}),
    }
    if turn.side and turn.success:
        predicted = (turn.side == "YES") == (turn.action == "BUY_SHARES")
        action["correctness"] = {
            "predictionCorrect": predicted == turn.market.outcome,
            "actualOutcome": turn.market.outcome,
            "predictedOutcome": predicted,
        }
    return action


def _reward(turn: _Turn) -> float:
    """1 or -1 for a trade on the side that came or did not come true (as the app rewrites it)."""
    if turn.side:
        return 1 if (turn.side == "YES") == turn.market.outcome else -1
    return 0.1 if turn.action in ("CREATE_POST", "COMMENT") else 0


def _feed(rng: random.Random) -> list[Json]:
    """Posts of unlike text, about 200 bytes each: the bulk of a real trace."""
    words = [f"{a}{b}" for a in ("tra", "mo", "vel", "ki", "sen") for b in ("de", "ra", "nt", "lo")]
    return [
        {
            "id": str(rng.getrandbits(60)),
            "author": rng.choice(_NAMES),
            "content": " ".join(rng.choices(words, k=22)),
            "engagement": rng.randrange(500),
        }
        for _ in range(512)
    ]


# --- strange but valid: none of these makes a row unusable ---


def _string_numbers(steps: list[Json]) -> None:
    for step in steps:
        state = step["environmentState"]
        step["environmentState"] = {key: str(value) for key, value in state.items()}


def _missing_state(steps: list[Json]) -> None:
    steps[0]["environmentState"] = {}
    steps[1]["environmentState"].pop("agentPnL", None)


def _many_calls(steps: list[Json]) -> None:
    steps[0]["llmCalls"] = steps[0]["llmCalls"] * 3


def _no_calls(steps: list[Json]) -> None:
    steps[1]["llmCalls"] = []


def _add_text(steps: list[Json], text: str) -> None:
    steps[0]["llmCalls"][0]["userPrompt"] += f"\nNews: {text}"
    steps[0]["providerAccesses"][0]["data"]["headline"] = text


def _leave(steps: list[Json]) -> None:
    """Oddities that are not in the steps."""


_ODDITIES: dict[Odd, Callable[[list[Json]], None]] = {
    "string_numbers": _string_numbers,
    "missing_state": _missing_state,
    "many_calls": _many_calls,
    "no_calls": _no_calls,
    "unicode": lambda steps: _add_text(steps, "Zürich \N{ROCKET} naïve 東京 \u202eabc"),
    "lone_surrogate": lambda steps: _add_text(steps, "cut in the middle \ud83d"),
    "nul_escape": lambda steps: _add_text(steps, "before\x00after"),
}


# --- small things ---


def _share(kinds: Sequence[Any], back: int, windows: int) -> tuple[Any, ...]:
    """The kinds that fall on the good window `back` hours ago: each kind on one window."""
    return tuple(kinds[(back - 2) % windows :: windows])


def _rng(*parts: object) -> random.Random:
    return random.Random(":".join(map(str, parts)))  # noqa: S311 - repeatable, not secret


def _snowflake(unix_ms: int, worker: int, sequence: int) -> str:
    """An id in the app's format: 41 bits of time, 10 of worker, 12 of sequence."""
    return str((unix_ms - _EPOCH_MS) << 22 | worker << 12 | sequence)


def _unix_ms(at: datetime) -> int:
    return _milliseconds(at - datetime(1970, 1, 1))


def _milliseconds(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


def _number(value: float) -> float:
    """Cents, and whole numbers without a fraction, as JavaScript writes them."""
    value = round(value, 2)
    return int(value) if value == int(value) else value


def _dump(value: object) -> str:
    """JSON as `JSON.stringify` writes it: compact, UTF-8, but lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# --- SQL ---

_INSERT_USER = """
INSERT INTO "User" ("id", "username", "displayName", "isAgent", "updatedAt")
VALUES (%s, %s, %s, true, %s)
ON CONFLICT DO NOTHING
"""

_INSERT_TRAJECTORY = """
INSERT INTO trajectories (
  "id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "windowHours",
  "scenarioId", "episodeId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson",
  "totalReward", "episodeLength", "finalStatus", "finalBalance", "finalPnL", "tradesExecuted",
  "postsCreated", "isTrainingData", "isEvaluation", "usedInTraining", "createdAt", "updatedAt")
VALUES (
  %(id)s, %(trajectory_id)s, %(agent_id)s, %(start_time)s, %(end_time)s, %(duration_ms)s,
  %(window_id)s, 1, %(scenario_id)s, %(episode_id)s, %(steps_json)s, %(reward_components_json)s,
  %(metrics_json)s, %(metadata_json)s, %(total_reward)s, %(episode_length)s, %(final_status)s,
  %(final_balance)s, %(final_pnl)s, %(trades_executed)s, %(posts_created)s,
  %(is_training_data)s, %(is_evaluation)s, false, %(updated_at)s, %(updated_at)s)
ON CONFLICT DO NOTHING
"""

_INSERT_OUTCOME = """
INSERT INTO market_outcomes (
  "id", "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", "sentiment",
  "predictionMarketId", "question", "outcome", "finalProbability", "createdAt")
VALUES (
  %(id)s, %(window_id)s, %(stock_ticker)s, %(start_price)s, %(end_price)s, %(change_percent)s,
  %(sentiment)s, %(prediction_market_id)s, %(question)s, %(outcome)s, %(final_probability)s,
  %(created_at)s)
ON CONFLICT DO NOTHING
"""


def _write_window(connection: psycopg.Connection[Any], window: WindowRows) -> int:
    """Insert one window; returns how many trajectories are new."""
    users = [(a.id, a.username, a.display_name, datetime(2025, 1, 1)) for a in window.agents]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_INSERT_USER, users)
        cursor.executemany(_INSERT_OUTCOME, [dataclasses.asdict(row) for row in window.outcomes])
        rows = [dataclasses.asdict(row) for row in window.trajectories]
        cursor.executemany(_INSERT_TRAJECTORY, rows)
        return cursor.rowcount
