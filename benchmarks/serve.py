"""The endpoint under load: promotions that nobody notices, what it adds, and how soon it follows.

    python benchmarks/serve.py [--promotions 50] [--rollbacks 10] [--vllm-python PATH] [--json]

- Promotions: clients that never pause ask an endpoint of its own process (with the engine of its
  own, a tiny model with adapters trained here) while versions are promoted and rolled back. An
  answer is stale if its version was not promoted at any moment from 5 s before the request began
  to its end.
- Commit to answer: seconds from the commit of a step to the first answer of its version.
- Added: 50 streams at once of a server that speaks vLLM's protocol, asked directly and through the
  endpoint in turns: the difference of the medians and of the 99th percentiles of the time to the
  first token, and of the whole answer.
- The engine of our own: 8 requests at once against 8 in turn, by serve_engine.py.

`--vllm-python` of an environment with vLLM adds the seconds from commit to answer with real vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1",
)  # fmt: skip
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from own_server import Server, run_server

from babylon_tasks.local.ports import free_port
from babylon_tasks.serving import promote
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.store import heads
from babylon_tasks.work.context import Context
from tests.rows import commit_steps

CLIENTS = 8
STALE_SECONDS = 5.0
STREAMS = 50
TOKENS = 24  # of a streamed answer
TOKEN_SECONDS = 0.03
VLLM_ON_A_CPU = "--enforce-eager --dtype bfloat16 --max-model-len 2048"
_QUESTION = [{"role": "user", "content": "Market 7 stands at 0.43. Buy, sell or hold?"}]
_STEP = "babylon-agent@"


@contextmanager
def endpoint(settings: Settings, **more: str) -> Iterator[str]:
    """Run the endpoint in a process of its own; yield its base URL."""
    env = {
        **os.environ,
        "DATABASE_URL": settings.postgres(),
        "TRAIN_RL_LOCAL": "true",
        "BASE_MODEL": settings.base_model,
        "CHECKPOINT_STORE": settings.checkpoint_store,
        **more,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.serve", "--port", "0"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("listening on "):
                break
        else:
            raise SystemExit(f"the endpoint ended with code {process.wait()}")
        url = line.removeprefix("listening on ").strip()
        deadline = time.monotonic() + 300  # vLLM takes minutes on a CPU
        while httpx.get(f"{url}/health/ready").status_code != 200:
            if time.monotonic() > deadline:
                raise SystemExit(f"not ready: {httpx.get(f'{url}/health/ready').text}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Answer:
    """An answer: its version, when it was asked for and when it was whole (seconds of `time`)."""

    step: int
    began: float
    ended: float


@dataclass
class Load:
    """What clients that never pause have seen."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, url: str, until: asyncio.Event) -> None:
        """Ask, `CLIENTS` at a time, every other answer streamed."""
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(self._client(client, n, until) for n in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int, until: asyncio.Event) -> None:
        streamed = bool(number % 2)
        while not until.is_set():
            began = time.time()
            try:
                models = await ask(client, streamed)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.failures.append(repr(error))
                continue
            if len(models) != 1:
                self.failures.append(f"one answer by {models}")
                continue
            step = int(models.pop().removeprefix(_STEP))
            self.answers.append(Answer(step, began, time.time()))


async def ask(client: httpx.AsyncClient, streamed: bool) -> set[str]:
    """Ask once; return the versions that the answer names."""
    body = {"model": "babylon-agent", "messages": _QUESTION, "max_tokens": 4, "stream": streamed}
    if not streamed:
        response = await client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        return {response.json()["model"]}
    models = set()
    async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        stream.raise_for_status()
        last = ""
        async for line in stream.aiter_lines():
            if line:
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    models.add(json.loads(last)["model"])
    if last != "[DONE]":
        raise ValueError(f"a stream without an end: {last[:100]}")
    return models


async def under_promotions(url: str, context: Context, args: argparse.Namespace) -> dict[str, Any]:
    """Promote and roll back while clients ask; return what they saw."""
    load, over = Load(), asyncio.Event()
    running = asyncio.create_task(load.run(url, over))
    moves = await asyncio.to_thread(move, context, args)
    await asyncio.sleep(STALE_SECONDS)
    over.set()
    await running
    return {
        "requests": len(load.answers) + len(load.failures),
        "failed": len(load.failures),
        "failures": sorted(set(load.failures))[:5],
        "stale_answers": sum(is_stale(answer, moves) for answer in load.answers),
        "promotions": args.promotions,
        "rollbacks": args.rollbacks,
        "versions_seen": len({answer.step for answer in load.answers}),
        "seconds_to_follow": followed(load.answers, moves),
    }


def move(context: Context, args: argparse.Namespace) -> list[tuple[float, int]]:
    """Promote and roll back in random order; return when each step began to serve."""
    rng = random.Random(1)
    kinds = ["up"] * args.promotions + ["down"] * args.rollbacks
    rng.shuffle(kinds)
    moves = [(0.0, args.steps)]
    for kind in kinds:
        now = moves[-1][1]
        # A step below to roll back to, one above to promote: where there is none, a way back first.
        if (kind == "up" and now == args.steps) or (kind == "down" and now == 1):
            now = 1 if kind == "up" else args.steps
            promote_to(context, now)
            moves.append((time.time(), now))
            time.sleep(args.pause)
        step = rng.randint(now + 1, args.steps) if kind == "up" else rng.randint(1, now - 1)
        promote_to(context, step)
        moves.append((time.time(), step))
        time.sleep(args.pause)
    return moves


def promote_to(context: Context, step: int) -> None:
    """Promote or roll back, as `babylon models` does."""
    serves = published(context)
    change = promote.promote if step > serves else promote.roll_back
    if step != serves:
        change(context, str(step), "benchmark")


def published(context: Context) -> int:
    """Return the step that serves."""
    with context.database.transaction() as tx:
        head = heads.read(tx, context.lineage.name)
    assert head is not None
    return head.published_step


def is_stale(answer: Answer, moves: list[tuple[float, int]]) -> bool:
    """Tell whether the answer's version did not serve from 5 s before the request to its end."""
    ends = [at for at, _ in moves[1:]] + [float("inf")]
    return not any(
        step == answer.step and at <= answer.ended and end >= answer.began - STALE_SECONDS
        for (at, step), end in zip(moves, ends, strict=True)
    )


def followed(answers: list[Answer], moves: list[tuple[float, int]]) -> dict[str, float]:
    """Return seconds from a move to the first answer by its step: median and most."""
    seconds = []
    for (at, step), (until, _) in itertools.pairwise(moves):
        ended = [each.ended for each in answers if each.step == step and at <= each.ended <= until]
        if ended:
            seconds.append(min(ended) - at)
    return {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)}


def commits_to_answers(url: str, context: Context, trainer: Any) -> list[float]:
    """Return the seconds of three commits to their first answers."""
    return [round(asyncio.run(commit_to_answer(url, context, trainer)), 2) for _ in range(3)]


async def commit_to_answer(url: str, context: Context, trainer: Any) -> float:
    """Return seconds from the commit of one more step to the first answer of its version."""
    await asyncio.to_thread(commit_steps, context, trainer, 1)
    with context.database.transaction() as tx:
        row = tx.execute(
            "SELECT step, committed_at FROM rl.steps ORDER BY step DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    committed_at: datetime = row["committed_at"]
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while await ask(client, False) != {f"{_STEP}{row['step']}"}:
            await asyncio.sleep(0.05)
    return time.time() - committed_at.timestamp()


# --- what the endpoint adds --------------------------------------------------------------------


@dataclass
class Times:
    """Milliseconds to the first token, and to the end, of each stream."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


async def streams(url: str, model: str, seconds: float, times: Times) -> None:
    """Keep 50 streams open for so long, each followed by the next."""
    until = time.monotonic() + seconds
    body = {"model": model, "messages": _QUESTION, "max_tokens": TOKENS, "stream": True}
    limits = httpx.Limits(max_connections=STREAMS)

    async def one(number: int) -> None:
        await asyncio.sleep(number / STREAMS * TOKENS * TOKEN_SECONDS)  # not all at once
        while time.monotonic() < until:
            began, first = time.perf_counter(), None
            async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                stream.raise_for_status()
                async for data in stream.aiter_raw():
                    if first is None and b'"content"' in data:
                        first = time.perf_counter()
            assert first is not None
            times.first.append(1000 * (first - began))
            times.whole.append(1000 * (time.perf_counter() - began))

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*map(one, range(STREAMS)))


async def added(direct: str, through: str, adapter: str, rounds: int) -> dict[str, Any]:
    """Ask the same server directly and through the endpoint, in turns."""
    times = {"direct": Times(), "through": Times()}
    for _ in range(rounds):
        await streams(direct, adapter, 6, times["direct"])
        await streams(through, "babylon-agent", 6, times["through"])
    found: dict[str, Any] = {"streams": len(times["through"].first)}
    for name in ("first", "whole"):
        ours, theirs = getattr(times["through"], name), getattr(times["direct"], name)
        for percent in (50, 99):
            key = f"added_ms_p{percent}" if name == "first" else f"added_whole_ms_p{percent}"
            found[key] = round(percentile(ours, percent) - percentile(theirs, percent), 2)
        found[f"direct_{name}_ms"] = [round(percentile(theirs, p), 1) for p in (50, 99)]
    return found


@contextmanager
def vllm(base_model: str) -> Iterator[str]:
    """Run a server that speaks vLLM's protocol, in a process of its own; yield its URL."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.vllm_server", "--port", str(port)),
            *("--base", base_model, "--token-seconds", str(TOKEN_SECONDS)),
        ],
        cwd=Path(__file__).resolve().parents[1],
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def newest_adapter(url: str) -> str:
    """Return the name of the adapter that the endpoint loaded last."""
    async with httpx.AsyncClient(base_url=url) as client:
        cards = (await client.get("/v1/models")).json()["data"]
    return next(card["id"] for card in reversed(cards) if card["parent"])


def percentile(values: list[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def engine_speedup(base_model: str) -> float:
    """Return how much more 8 requests at once get than 8 in turn, from a process of its own."""
    script = Path(__file__).with_name("serve_engine.py")
    command = [sys.executable, str(script), base_model, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["embedded_speedup"])


# --- the whole ---------------------------------------------------------------------------------


def main() -> None:
    """Run all three, print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promotions", type=int, default=50)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two of them")
    parser.add_argument("--steps", type=int, default=6, help="versions to choose from")
    parser.add_argument("--rounds", type=int, default=4, help="of the streams")
    parser.add_argument("--vllm-python", help="Python of an environment that has vLLM")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with run_server() as server:
        found = run(server, args)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22} {value}")


def run(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Train the versions, then measure."""
    from workers.trainer.torch.trainer import TorchTrainer  # late: after the environment is set

    base_model = str(make_tiny_model(server.folder / "base"))
    url = server.database("serve")
    settings = server.settings(url, trainer="torch", base_model=base_model)
    context = Context.of_deployment(settings, "benchmark")
    trainer = TorchTrainer("cpu-0")
    commit_steps(context, trainer, args.steps)
    promote.pause(context, "only this benchmark promotes")
    # First, while Postgres has nothing to clean up after the load of the other part.
    with vllm(base_model) as direct, endpoint(settings, VLLM_URLS=direct) as through:
        adapter = asyncio.run(newest_adapter(direct))
        found = asyncio.run(added(direct, through, adapter, args.rounds))
    with endpoint(settings) as own:
        found |= asyncio.run(under_promotions(own, context, args))
        promote.resume(context, "benchmark")
        found["commit_to_answer_seconds"] = commits_to_answers(own, context, trainer)
    if args.vllm_python:
        more = {"VLLM_PYTHON": args.vllm_python, "VLLM_ARGUMENTS": VLLM_ON_A_CPU}
        with endpoint(settings, **more) as own:
            found["commit_to_answer_seconds_vllm"] = commits_to_answers(own, context, trainer)
    found["embedded_speedup"] = engine_speedup(base_model)
    return found


if __name__ == "__main__":
    main()
