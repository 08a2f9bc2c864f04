"""The ground truth, which only a judge is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from babylon_tasks.records.actions import AgentRun, trades
from babylon_tasks.records.markets import Market
from babylon_tasks.scoring.judge.condense import plain
from babylon_tasks.scoring.judge.tokens import estimate_tokens

_TICKER_CHARS = 24
_QUESTION_CHARS = 200


def most_traded(markets: Sequence[Market], runs: Iterable[AgentRun]) -> list[Market]:
    """Return the markets, those with the most trades first."""
    traded = Counter(step.market for run in runs for step in trades(run))
    return sorted(markets, key=lambda m: -(traded[m.id] + traded[m.ticker]))


def short_names(markets: Iterable[Market]) -> dict[str, str]:
    """Return M1, M2, … for the ids of prediction markets, which are long and alike."""
    ids = dict.fromkeys(market.id for market in markets if market.id and not market.ticker)
    return {market_id: f"M{number}" for number, market_id in enumerate(ids, start=1)}


def describe(markets: Sequence[Market], names: Mapping[str, str], max_tokens: int) -> str:
    """Return the markets' outcomes by their short names; those that do not fit are counted."""
    if not markets:
        return "How the markets came out is not known: judge by what the traders could know."
    lines = ["How the markets of this hour came out, which the traders could not know:"]
    budget = max_tokens - estimate_tokens(lines[0]) - estimate_tokens(_left_out(len(markets)))
    for listed, market in enumerate(markets):
        line = _line(market, names)
        budget -= estimate_tokens(f"\n{line}")
        if budget < 0:
            lines.append(_left_out(len(markets) - listed))
            break
        lines.append(line)
    return "\n".join(lines)


def _left_out(count: int) -> str:
    return f"({count} markets that were traded less are left out)"


def _line(market: Market, names: Mapping[str, str]) -> str:
    if market.ticker:
        prices = f"{market.start_price:g} to {market.end_price:g}" if market.has_prices else "?"
        percent = "" if market.change_percent is None else f" ({market.change_percent:+.2f} %)"
        return f"- {plain(market.ticker, _TICKER_CHARS)}: {prices}{percent}"
    name = names.get(market.id or "", "?")
    question = plain(market.question or "?", _QUESTION_CHARS)
    return f'- {name} {plain(market.outcome or "unresolved", _TICKER_CHARS)}: "{question}"'
