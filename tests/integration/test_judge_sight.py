"""What the judge is shown, and what the trainer is not."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, Trainer
from babylon_tasks.work.context import Context
from tests.judge_server import JudgeServer, Received
from tests.judged import add_outcome, assert_costs_add_up, play, prompt, stored
from tests.rows import add_trajectory, hours_ago, one, query, states

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

# --- ground truth ---


class Tokenizing(Trainer):
    """Makes tokens of a step's samples as the torch trainer does, and reads them back."""

    def __init__(self, base_model: str) -> None:
        self.base_model = base_model
        self.samples = ""
        self.decoded: list[str] = []

    def step(self, request: StepRequest, on_beat: Callable[[Progress | None], None]) -> StepResult:
        from transformers import AutoTokenizer

        from workers.trainer.noop import NoopTrainer
        from workers.trainer.samples import read_samples, trajectory_groups
        from workers.trainer.torch.chat_format import ChatFormat
        from workers.trainer.torch.tokenized import tokenize_groups

        self.samples = Path(request.samples_path).read_text()
        tokenizer = AutoTokenizer.from_pretrained(self.base_model)
        chat = ChatFormat(tokenizer, self.base_model)
        groups = trajectory_groups(read_samples(request.samples_path))
        found = tokenize_groups(chat, groups, request.hyperparameters.max_sequence_tokens)
        assert not found.dropped
        packed = found.sequences.packed(advantage_balance=0.0)
        tokens, numbers = packed["tokens"][0], packed["group_ids"][0]
        self.decoded = [
            tokenizer.decode(tokens[numbers == number]) for number in range(len(found.sequences))
        ]
        return NoopTrainer().step(request, on_beat)

    def close(self) -> None:
        pass


def test_outcomes_are_shown_to_the_judge_and_never_reach_the_trainer(
    make_judged: MakeContext, server: JudgeServer, tmp_path: Path
) -> None:
    """Words that appear nowhere else are planted wherever a row tells the future."""
    pytest.importorskip("torch")
    from tests.unit.tiny import make_tiny_model

    context = make_judged()
    window = hours_ago(2)
    add_outcome(
        context,
        window,
        predictionMarketId="m1",
        question="Will the zebrafish win?",
        outcome="QUOKKA",
        newsEvents=json.dumps(["axolotl"]),
    )
    add_outcome(
        context,
        window,
        stockTicker="NUMBAT",
        startPrice=123.25,
        endPrice=987.75,
        changePercent=701.42,
        sentiment="okapi",
    )
    add_outcome(context, hours_ago(3), stockTicker="OTHERHOUR", changePercent=1.0)
    told = ["zebrafish", "QUOKKA", "NUMBAT", "123.25", "987.75", "701.42"]
    secrets = ["axolotl", "okapi", "pangolin", "tardigrade", "capybara", "OTHERHOUR"]
    for n, score in enumerate([0.1, 0.9, 0.4, 0.6]):
        run = json.loads(play(-50.0 * n, score))
        for step in run:
            step["llmCalls"][0]["userPrompt"] += " A wombat asks."
            step["action"]["result"] = {"shares": 3, "note": "pangolin"}
            step["action"]["correctness"] = {"predictionCorrect": True, "why": "tardigrade"}
        add_trajectory(
            context,
            window,
            f"agent-{n}",
            stepsJson=json.dumps(run),
            metadataJson=json.dumps({"gameKnowledge": {"trueOutcome": "capybara"}}),
        )
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    (request,) = server.requests
    for marker in told:
        assert marker in prompt(request)
    for marker in secrets:
        assert marker not in json.dumps(request.body)
    trainer = Tokenizing(make_tiny_model(tmp_path / "model"))
    assert pipeline.train(context, trainer)
    assert states(context) == {window: "trained"}
    assert len(trainer.decoded) == 12  # of four agents, three calls each
    assert all("wombat" in text for text in trainer.decoded)  # so what is there is found
    for marker in told + secrets:
        assert marker not in trainer.samples
        assert not any(marker in text for text in trainer.decoded)


# --- large windows ---

AGENTS, STEPS, CONTEXT_TOKENS = 64, 60, 32_000


def long_run(rng: random.Random) -> list[dict[str, Any]]:
    """Sixty steps: trades of every kind, some refused, waits; a P&L that turns often."""
    cents, run = 0, []
    for n in range(STEPS):
        cents += rng.choice((0, 0, rng.randint(-4000, 4000)))
        kind = rng.choice(("HOLD", "HOLD", "BUY_SHARES", "SELL_SHARES", "OPEN_POSITION"))
        action: dict[str, Any] = {"actionType": kind, "success": True}
        if kind == "OPEN_POSITION":
            parameters = {"ticker": rng.choice(("ACME", "GLOBEX")), "side": "long", "size": n}
        elif kind != "HOLD":
            parameters = {"marketId": f"m{rng.randint(1, 9)}", "side": "YES", "amount": 100 + n}
        else:
            parameters = {}
        action["parameters"] = parameters
        if parameters and rng.random() < 0.1:
            action |= {"success": False, "error": "insufficient balance"}
        said = " ".join(rng.choices(("momentum", "is", "strong", "the", "price", "rises"), k=40))
        run.append(
            {
                "stepNumber": n,
                "environmentState": {"agentBalance": 1000, "agentPnL": cents / 100},
                "llmCalls": [
                    {
                        "systemPrompt": "You trade.",
                        "userPrompt": f"Step {n}: " + "news " * 300,
                        "response": f"{kind} because {said}",
                        "purpose": "action",
                    }
                ],
                "action": action,
            }
        )
    return run


def add_large_window(context: Context, window: str) -> dict[str, list[dict[str, Any]]]:
    """64 agents of mixed skill, whose scores go half by the money and half by what else they did.

    Trajectory id → steps; the first step's action carries the score in a parameter.
    """
    rng = random.Random(4)
    runs = [long_run(rng) for _ in range(AGENTS)]
    by_money = sorted(range(AGENTS), key=lambda n: runs[n][-1]["environmentState"]["agentPnL"])
    skill = [0.5 * by_money.index(n) / AGENTS + 0.5 * rng.random() for n in range(AGENTS)]
    found = {}
    for n, run in enumerate(runs):
        run[0]["action"]["parameters"]["note"] = f"JUDGE-SCORE={skill[n]:.4f}"
        trajectory_id = add_trajectory(context, window, f"agent-{n:02}", stepsJson=json.dumps(run))
        found[trajectory_id] = run
    return found


def shown(request: Received) -> dict[str, str]:
    """Each trajectory's text, by the score that is written in it."""
    found = {}
    for raw in request.trajectories.values():
        (message,) = json.loads(raw)
        (note,) = re.findall(r"JUDGE-SCORE=(0\.\d+)", message["content"])
        found[note] = message["content"]
    return found


def assert_tells_all(text: str, run: list[dict[str, Any]], names: dict[str, str]) -> None:
    """Every action at its step, and the P&L wherever it turned; `names` are those of markets."""
    lines: dict[int, str] = {}
    for line in text.splitlines()[1:]:
        match = re.match(r"(\d+)(?:-(\d+))? ", line)
        assert match, line
        for step in range(int(match[1]), int(match[2] or match[1]) + 1):
            assert step not in lines
            lines[step] = line
    assert sorted(lines) == list(range(STEPS))
    for n, step in enumerate(run):
        action = step["action"]
        words = lines[n].split()
        assert words[1] == action["actionType"]
        told = [str(value) for key, value in action["parameters"].items() if key != "note"]
        assert {names.get(each, each) for each in told} <= set(words)
        assert ("FAILED" in words) == (not action["success"])
    path = [step["environmentState"]["agentPnL"] for step in run]
    moved = [n for n in range(STEPS) if n == 0 or path[n] != path[n - 1]]
    for before, at, after in zip(moved, moved[1:], moved[2:], strict=False):
        if (path[at] > path[before]) != (path[after] > path[at]):
            assert f"${path[at]:.2f}".rstrip("0").rstrip(".") in lines[at].split()


def rank_correlation(one_way: list[float], other: list[float]) -> float:
    """Spearman's, of distinct numbers."""
    n = len(one_way)
    ranks = [
        {each: rank for rank, each in enumerate(sorted(range(n), key=values.__getitem__))}
        for values in (one_way, other)
    ]
    apart = sum((ranks[0][each] - ranks[1][each]) ** 2 for each in range(n))
    return 1 - 6 * apart / (n * (n * n - 1))


def test_a_large_window_is_judged_within_a_small_context(make_judged: MakeContext) -> None:
    with JudgeServer(max_context_tokens=CONTEXT_TOKENS) as server:
        context = make_judged(judge_base_url=server.url, judge_context_tokens=CONTEXT_TOKENS)
        window = hours_ago(2)
        runs = add_large_window(context, window)
        for n in range(1, 10):
            question = f"market m{n} up?"
            add_outcome(context, window, predictionMarketId=f"m{n}", question=question)
        pipeline.produce(context)
        assert pipeline.score(context) == [window]
        assert {request.behaviour for request in server.requests} == {"good"}
        wanted = {each: run[0]["action"]["parameters"]["note"][12:] for each, run in runs.items()}
        texts = [shown(request) for request in server.requests]
        assert 2 <= len(texts) <= 8
        assert set().union(*texts) == set(wanted.values())
        anchors = set.intersection(*map(set, texts))
        assert len(anchors) == 4
        for request, told in zip(server.requests, texts, strict=True):
            names = {
                m: name
                for name, m in re.findall(r"- (M\d) \w+: .?.market (m\d) up", prompt(request))
            }
            assert len(names) == 9
            for trajectory_id, note in wanted.items():
                if note in told:
                    assert_tells_all(told[note], runs[trajectory_id], names)
        found = stored(context)
        assert found.keys() == wanted.keys()
        written = [float(wanted[each]) for each in found]
        assert rank_correlation(list(found.values()), written) > 0.95
        assert one(context, "SELECT count(*) AS n FROM rl.judgments")["n"] == len(texts)
        assert query(context, "SELECT * FROM rl.judgments WHERE fault IS NOT NULL") == []
        assert_costs_add_up(context, window)
