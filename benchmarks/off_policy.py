"""Effect of fixed, off-policy data on a model over 50 steps, by recipe, on a task with an answer.

    python benchmarks/off_policy.py [--json] [--seeds 5] [--recipe default] [--plot curves.svg]

First the tiny model learns to answer YES or NO to a market's momentum, but not which is right. The
data is 240 recorded calls of 80 agents. Their skill (how often they answer right) goes from 0.2 to
0.9; an agent's score is the share of its three answers that were right. Each step trains on all
calls with the real trainer, so the data gets older with every step. After each step, on 64 prompts
that are not in the data:

- *right*: probability of the right answer against the wrong one.
- *well-formed*: probability of either answer with its end; the rest is that of any other text.

Two recipes get the agents' own log-probabilities with their calls, as a server could attach them:
an agent of skill 0.2 gives the right answer with log 0.2, the wrong one with log 0.8. The other
recipes get none, so that each answer counts as the model's own.

A recipe is sound if in every seed *right* ends at 0.75 or more and *well-formed* never falls under
0.9.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from curves import svg
from recorded_calls import write_samples
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylon_tasks.records.steps import Call, Hyperparameters, Logprobs, Sample, StepRequest
from babylon_tasks.simulation.tiny_model import make_tiny_model
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.sequences import Sequences
from workers.trainer.torch.trainer import TorchTrainer

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env

WINDOWS, AGENTS, CALLS = 10, 8, 3
ANSWERS = ("YES", "NO")
RECIPES = {
    "plain": {"kl_penalty": 0.0, "negative_scale": 1.0},
    "damped": {"kl_penalty": 0.0, "negative_scale": 0.3},
    "better half": {"kl_penalty": 0.0, "negative_scale": 0.0},
    "KL": {"kl_penalty": 0.1, "negative_scale": 1.0},
    "default": {"kl_penalty": 0.1, "negative_scale": 0.3},
    "plain, recorded": {"kl_penalty": 0.0, "negative_scale": 1.0},
    "default, recorded": {"kl_penalty": 0.1, "negative_scale": 0.3},
}
RECORDED = ("plain, recorded", "default, recorded")
PASSES = {"right": 0.75, "well_formed": 0.9}


def prompt(rng: random.Random) -> tuple[str, str]:
    """Draw a question about a market, and return it with the right answer."""
    momentum = rng.choice((-1, 1)) * rng.randint(1, 9)
    text = f"{rng.randint(100, 999)}: momentum {momentum:+d}"
    return text, ANSWERS[momentum < 0]


def recorded(seed: int, chat: ChatFormat | None = None) -> list[Sample]:
    """Make windows of agents of skill 0.2 to 0.9; the score says how often they were right.

    With a `chat` the calls carry their agent's log-probabilities.
    """
    rng = random.Random(seed)
    samples = []
    for window in range(WINDOWS):
        for agent in range(AGENTS):
            skill = 0.2 + 0.7 * agent / (AGENTS - 1)
            calls, right = [], 0
            for _ in range(CALLS):
                text, answer = prompt(rng)
                hit = rng.random() < skill
                right += hit
                response = answer if hit else ANSWERS[1 - ANSWERS.index(answer)]
                likely = logprobs(chat, response, skill if hit else 1 - skill) if chat else None
                calls.append(Call("", text, response, likely))
            samples.append(Sample(f"w{window}", f"w{window}-{agent}", right / CALLS, calls))
    return samples


def logprobs(chat: ChatFormat, answer: str, probability: float) -> Logprobs:
    """Return an answer's log-probabilities: the first token is the choice, the rest is certain."""
    token_ids = (*chat.encode([answer])[0], *chat.end_ids)
    return Logprobs(token_ids, (math.log(probability), *[0.0] * (len(token_ids) - 1)))


def teach_the_form(folder: Path, seed: int) -> None:
    """Train on random YES and NO: the model learns to answer, not which answer is right."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    chat = ChatFormat(tokenizer, str(folder))
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(60):
        batch = as_batch(chat, [(prompt(rng)[0], rng.choice(ANSWERS)) for _ in range(32)])
        logits = network(input_ids=batch.inputs["tokens"], use_cache=False).logits
        targets = batch.inputs["tokens"].roll(-1, dims=1)[batch.predicts]
        torch.nn.functional.cross_entropy(logits[batch.predicts], targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    network.save_pretrained(folder)


def as_batch(chat: ChatFormat, asked: list[tuple[str, str]]) -> Any:
    """Make a micro-batch of questions with their answers."""
    sequences = Sequences()
    for text, answer in asked:
        asked_as = chat.prompt([{"role": "user", "content": text}])
        prompt_ids, answer_ids = chat.encode([asked_as, answer])
        sequences.add(prompt_ids, [*answer_ids, *chat.end_ids], advantage=1.0, weight=1.0)
    step = StepTensors.from_packed(sequences.packed(0.0))
    return step.take(list(range(len(asked))), torch.device("cpu"))


@torch.no_grad()
def look(model: LanguageModel) -> dict[str, float]:
    """Measure mean `right` and `well_formed` over prompts that are not in the data."""
    rng = random.Random(-1)
    asked = [prompt(rng) for _ in range(64)]
    chances = []
    for answer in ANSWERS:
        batch = as_batch(model.chat, [(text, answer) for text, _ in asked])
        logprobs, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
        whole = torch.zeros(batch.predicts.shape).masked_scatter(batch.predicts, logprobs)
        chances.append(whole.sum(1).exp())
    yes, no = chances
    is_yes = torch.tensor([right == "YES" for _, right in asked])
    right = torch.where(is_yes, yes, no) / (yes + no)
    return {"right": float(right.mean()), "well_formed": float((yes + no).mean())}


def run(folder: Path, seed: int, steps: int, name: str) -> Iterator[dict[str, Any]]:
    """Train step by step, and yield a look before the first step and after each."""
    trainer = TorchTrainer("cpu-0")
    samples = folder / "samples.jsonl"
    base_model = folder.parent / "model"
    chat = ChatFormat(AutoTokenizer.from_pretrained(base_model), str(base_model))
    write_samples(samples, recorded(seed, chat if name in RECORDED else None))
    parent = None
    for number in range(steps):
        scratch = folder / f"step-{number}"
        request = StepRequest(
            model_name="toy", base_model=str(base_model), parent=parent,
            samples_path=str(samples), scratch_dir=str(scratch),
            output_dir=str(scratch / "out"), seed=seed * 1000 + number,
            hyperparameters=Hyperparameters(
                learning_rate=1e-3, warmup_steps=5, lora_rank=8, lora_alpha=16,
                max_sequence_tokens=4096, micro_batch_tokens=16_384, **RECIPES[name],
            ),
        )  # fmt: skip
        trainer.step(request, lambda progress: None)
        assert trainer._model is not None
        if number == 0:
            with trainer._model.as_base():
                yield look(trainer._model)
        yield look(trainer._model)
        if parent is not None:
            shutil.rmtree(Path(parent).parent)
        parent = request.output_dir


def summary(runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Summarize the runs of one recipe over its seeds."""
    ends = [run[-1]["right"] for run in runs]
    lows = [min(look["well_formed"] for look in run) for run in runs]
    return {
        "right_at_the_end": [round(end, 3) for end in ends],
        "well_formed_at_the_end": [round(run[-1]["well_formed"], 3) for run in runs],
        "least_well_formed": [round(low, 3) for low in lows],
        "sound": min(ends) >= PASSES["right"] and min(lows) >= PASSES["well_formed"],
        "curve": [
            {name: round(statistics.mean(run[at][name] for run in runs), 3) for name in PASSES}
            for at in range(0, len(runs[0]), 5)
        ],
    }


def report(figures: dict[str, Any]) -> str:
    """Write a line for each recipe, and its curve: the mean over the seeds, every fifth step."""
    lines = []
    for name, one in figures["recipes"].items():
        lines.append(
            f"{name:18} right {min(one['right_at_the_end']):.2f} to "
            f"{max(one['right_at_the_end']):.2f}, well-formed at least "
            f"{min(one['least_well_formed']):.2f}: {'sound' if one['sound'] else 'not sound'}"
        )
        for measure in PASSES:
            lines.append(
                f"    {measure:12}" + " ".join(f"{point[measure]:.2f}" for point in one["curve"])
            )
    return "\n".join(lines)


def plot(figures: dict[str, Any]) -> str:
    """Draw the mean curves of all recipes."""
    panels = {
        measure: {
            name: [point[measure] for point in one["curve"]]
            for name, one in figures["recipes"].items()
        }
        for measure in PASSES
    }
    return svg(panels, PASSES, figures["steps"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="a multiple of 5")
    parser.add_argument("--plot", type=Path, help="write the curves as an SVG")
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="default: all")
    arguments = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    torch.set_num_threads(1)  # short calls gain nothing from more
    figures: dict[str, Any] = {"seeds": arguments.seeds, "steps": arguments.steps, "recipes": {}}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        make_tiny_model(folder / "model")
        teach_the_form(folder / "model", seed=0)
        for name in arguments.recipe or RECIPES:
            runs = []
            for seed in range(1, arguments.seeds + 1):
                (folder / f"{name}-{seed}").mkdir()
                runs.append(list(run(folder / f"{name}-{seed}", seed, arguments.steps, name)))
                print(name, seed, runs[-1][0], runs[-1][-1], file=sys.stderr)
            figures["recipes"][name] = summary(runs)
    if arguments.plot:
        arguments.plot.write_text(plot(figures))
    text = json.dumps(figures) if arguments.json else report(figures)
    os.write(stdout, (text + "\n").encode())


if __name__ == "__main__":
    main()
