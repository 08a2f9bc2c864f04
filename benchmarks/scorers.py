"""Which scorer finds the good agents: each scorer's ranks, compared with the agents' known skill.

    python benchmarks/scorers.py [--windows 60] [--agents 12] [--noise 0.1] [--seed 1] [--json]

The windows are those that `babylon demo` simulates, with 3 to 12 steps for each agent. An agent's
skill is its probability of betting with the momentum, which predicts a market's outcome nine times
in ten. The pipeline scores each window with `heuristic`, `correctness`, `ruler` and `blend`, on an
embedded Postgres; RULER asks over HTTP, through litellm and ART's `ruler()`.

**The judge is a script, not a language model.** From the prompt it reads the markets' outcomes and
the agents' actions, but not their words. It follows the default rubric by arithmetic, and adds an
even error of up to `--noise` either way. The figures show that a judge gets what it needs and that
its opinion reaches the scores. They do not show how good a real judge is.

Figures are means over windows of Spearman's rank correlation within a window, ± their standard
error: with the agents' skill, and with the P&L at the end of their runs. *No signal* is the share
of windows that the pipeline skipped; for a component, the share in which all agents had the same
value.

- *P&L*: ranks by the P&L at the end of the runs alone.
- *bets as meant*: ranks by the share of bets with the momentum, which no scorer sees. So few bets
  can hardly say more about the skill.

Lines with a dash are the components of the scorer above them; those of the blend are the
heuristic's. The blend asks nothing here, because RULER's answers to the same questions are kept and
used. Tokens are those of the prompts (cl100k_base) and of the script's short answers (characters /
4).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg

from babylon_tasks import pipeline
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.scoring.agreement import spearman
from babylon_tasks.scoring.registry import SCORERS
from babylon_tasks.scoring.rubric import CRITERIA
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.simulate import TrajectoryRow, WindowRows, simulate, write
from babylon_tasks.store import judgments, scores
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from tests.judge_server import Behaviour, JudgeServer, Received, text_of

NOW = datetime(2026, 1, 5, 0, 30)  # UTC; fixed, so that the rows are always the same
TRUTHS = ("skill", "P&L")
SHOWN = (*TRUTHS, *SCORERS)
STAND_IN = "The judge is a stand-in script that follows the rubric by arithmetic, not an LLM."

_CONTEXT = re.compile(r"^<context>\n(.*)\n</context>$", re.MULTILINE)
_OUTCOME = re.compile(r"^- (M\d+) (YES|NO): ", re.MULTILINE)
_LAST_PNL = re.compile(r"last (-?[\d.]+)\.$", re.MULTILINE)
_TRADES = re.compile(r"(\d+) trades, (\d+) failed\.")
_BET = re.compile(r"^[\d-]+ (BUY|SELL)_SHARES (YES|NO) (\d+) (M\d+)\b(?! FAILED)(?: x(\d+))?", re.M)


class RubricJudge(JudgeServer):
    """A judge that scores what its prompt says by the rubric; the server adds the noise."""

    def completion(self, request: Received, behaviour: Behaviour) -> dict[str, Any]:
        """Answer with scores, which `written_score` reads from the marked texts."""
        context = json.loads(_CONTEXT.findall(text_of(request.messages[-1]))[0])[0]["content"]
        texts = {
            each: json.loads(text)[0]["content"] for each, text in request.trajectories.items()
        }
        score = by_rubric(dict(_OUTCOME.findall(context)), texts)
        marked = {each: f"JUDGE-SCORE={score[each]:.6f}\n{text}" for each, text in texts.items()}
        return super().completion(dataclasses.replace(request, trajectories=marked), behaviour)


def by_rubric(outcomes: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, float]:
    """Score by the rubric's four criteria, each in [0, 1], with figures from the texts.

    Profit: the last P&L between the question's worst and best. Timing: the share of bets that came
    true. Risk: the share of the money outside the market with most of it. Opportunity: the share
    of the markets in which a bet came true.
    """
    pnl = {each: float(_LAST_PNL.findall(text)[0]) for each, text in texts.items()}
    worst, best = min(pnl.values()), max(pnl.values())
    score = {}
    for each, text in texts.items():
        money, right = Counter[str](), Counter[str]()
        bets = 0
        for way, side, amount, market, times in _BET.findall(text):
            count = int(times or 1)
            bets += count
            money[market] += count * int(amount)
            right[market] += count * ((outcomes[market] == side) == (way == "BUY"))
        traded, failed = map(int, _TRADES.findall(text)[0])
        assert bets == traded - failed, text  # the lines are read as `condense` writes them
        criteria = {
            "profit": (pnl[each] - worst) / (best - worst) if best > worst else 0.5,
            "timing": right.total() / bets if bets else 0.5,
            "risk": 1 - max(money.values()) / money.total() if bets else 0.5,
            "opportunity": sum(n > 0 for n in right.values()) / len(outcomes),
        }
        score[each] = sum(CRITERIA[name] * value for name, value in criteria.items())
    return score


def bets_as_meant(row: TrajectoryRow) -> float:
    """Return the share of bets that followed the momentum, by the reasons that were given."""
    reasons = [
        json.loads(step["llmCalls"][-1]["response"])["reason"]
        for step in json.loads(row.steps_json)
        if "side" in step["action"]["parameters"]
    ]
    return sum(reason.startswith("momentum") for reason in reasons) / len(reasons)


Ranks = dict[str, list[float]]  # a window's trajectories, in order, by what ranks them


def measure(windows: int, agents: int, noise: float, seed: int) -> dict[str, Any]:
    """Score every window with every scorer."""
    simulated = list(simulate(windows, agents, seed, NOW, odd=False))
    cost: dict[str, dict[str, float]] = {}
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="babylon-bench-")))
        url = stack.enter_context(embedded_postgres(folder / "postgres", "bench"))
        judge = stack.enter_context(RubricJudge(max_context_tokens=32_000, noise=noise))
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            write(connection, simulated)
        settings = Settings(  # type: ignore[call-arg]
            database_url=url,  # type: ignore[arg-type]
            judge_model="openai/stand-in",
            judge_base_url=judge.url,
        )
        context = Context.of_deployment(settings, "benchmark")
        stack.callback(context.database.close)
        for name in SCORERS:
            for window in simulated:
                pipeline.enqueue(context, window.window_id, scoring=name)
            asked, tokens = len(judge.requests), tokens_paid(context, simulated)
            while pipeline.score(context):
                pass
            with context.database.transaction() as tx:
                rows = tx.execute("SELECT state, scorer FROM rl.windows").fetchall()
            states = Counter(row["state"] for row in rows if row["scorer"] == name)
            assert states["scored"] + states["skipped"] == windows, rows
            cost[name] = {
                "no_signal": states["skipped"] / windows,
                "questions": len(judge.requests) - asked,
                "tokens": tokens_paid(context, simulated) - tokens,
            }
        ranked = [rank(context, window) for window in simulated]
    return {
        **{"windows": windows, "agents": agents, "noise": noise, "seed": seed, "judge": STAND_IN},
        "seconds": round(time.perf_counter() - started, 1),
        "ranks": {
            name: summary(name, ranked) | cost.get(name, {})
            for name in ranked[0]
            if name != "skill"
        },
        "one_window": one_window(*typical(simulated, ranked)),
    }


def tokens_paid(context: Context, simulated: Sequence[WindowRows]) -> int:
    """Return the tokens of all answers so far."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        costs = [judgments.cost(tx, name, window.window_id) for window in simulated]
    return sum(cost.tokens or 0 for cost in costs)


def rank(context: Context, window: WindowRows) -> Ranks:
    """Rank by scorer, by component (`scorer.component`), and by the facts about the agents."""
    with context.database.transaction() as tx:
        compared = scores.compare(tx, context.lineage.name, window.window_id)
    comparison = {each.trajectory_id: each for each in compared}
    in_order = [comparison[row.trajectory_id] for row in window.trajectories]
    by: Ranks = {}
    for name in SCORERS:
        by[name] = [each.scores[name] for each in in_order]
        # The blend's components are the heuristic's, and the scores that it mixes.
        for component in in_order[0].components[name] if name != "blend" else ():
            by[f"{name}.{component}"] = [each.components[name][component] for each in in_order]
    skills = {agent.id: agent.skill for agent in window.agents}
    by["P&L"] = [row.final_pnl for row in window.trajectories]
    by["bets as meant"] = [bets_as_meant(row) for row in window.trajectories]
    by["skill"] = [skills[row.agent_id] for row in window.trajectories]
    return by


def summary(name: str, ranked: Sequence[Ranks]) -> dict[str, Any]:
    """Return mean rank correlations, and the share of windows in which all are equal."""
    figures: dict[str, Any] = {"no_signal": fmean(len(set(by[name])) == 1 for by in ranked)}
    for truth in TRUTHS:
        values = [r for by in ranked if (r := spearman(by[name], by[truth])) is not None]
        error = stdev(values) / math.sqrt(len(values)) if values[1:] else None
        figures[truth] = {"mean": fmean(values) if values else None, "standard_error": error}
    return figures


def typical(simulated: Sequence[WindowRows], ranked: Sequence[Ranks]) -> tuple[WindowRows, Ranks]:
    """Find the window whose rank correlations with skill are nearest to the means."""
    rows = [[spearman(by[name], by["skill"]) or 0.0 for name in SCORERS] for by in ranked]
    means = [fmean(column) for column in zip(*rows, strict=True)]
    nearest = min(range(len(ranked)), key=lambda at: math.dist(rows[at], means))
    return simulated[nearest], ranked[nearest]


def one_window(window: WindowRows, by: Ranks) -> dict[str, Any]:
    """Return each agent's score by each scorer, the most skilled agent first."""
    names = {agent.id: agent.display_name for agent in window.agents}
    rows = [
        {"agent": names[row.agent_id], **{name: round(by[name][at], 4) for name in SHOWN}}
        for at, row in enumerate(window.trajectories)
    ]
    return {
        "window": window.window_id,
        "agents": sorted(rows, key=lambda row: -row["skill"]),
        "rank_correlation": {name: spearman(by[name], by["skill"]) for name in SHOWN[1:]},
    }


def table(figures: Mapping[str, Any]) -> str:
    """Write the figures for people, in Markdown."""
    given = "{windows} windows x {agents} agents, noise {noise}, seed {seed}, {seconds} s. {judge}"
    lines = [given.format_map(figures), ""]
    lines += line("ranked by", "with skill", "with P&L", "no signal", "questions", "tokens")
    lines += line(*["---"] * 6)
    for name, row in figures["ranks"].items():
        means = [" ± ".join(map(decimals, row[truth].values())) for truth in TRUTHS]
        cost = [f"{row[key]:,}" if key in row else "" for key in ("questions", "tokens")]
        title = re.sub(r"^.*\.", "- ", name)
        lines += line(title, *means, f"{row['no_signal']:.0%}", *cost)
    one = figures["one_window"]
    lines += [
        "",
        f"Window {one['window']}, in which the scorers do about as well as on average:",
        "",
    ]
    lines += [*line("agent", *SHOWN), *line("---", *["---:"] * len(SHOWN))]
    for agent in one["agents"]:
        by_scorer = [f"{agent[name]:.3f}" for name in SCORERS]
        lines += line(agent["agent"], f"{agent['skill']:.2f}", f"{agent['P&L']:+.2f}", *by_scorer)
    numbers = [f"*{decimals(number)}*" for number in one["rank_correlation"].values()]
    lines += line("*rank correlation with skill*", "", *numbers)
    return "\n".join(lines)


def decimals(number: float | None) -> str:
    """Write a number with two decimals; None is a question mark."""
    return "?" if number is None else f"{number:.2f}"


def line(*cells: str) -> list[str]:
    """Write a line of a table in Markdown."""
    return [f"| {' | '.join(cells)} |"]


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--agents", type=int, default=12)
    parser.add_argument("--noise", type=float, default=0.1, help="of the stand-in judge")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = measure(options.windows, options.agents, options.noise, options.seed)
    print(json.dumps(figures) if options.json else table(figures))


if __name__ == "__main__":
    main()
