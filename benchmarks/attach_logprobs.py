"""Log-probabilities attached by a real vLLM server, against the trainer's own.

    python benchmarks/attach_logprobs.py --url http://127.0.0.1:8000/v1 --base-model FOLDER \
        --name babylon-agent@1 [--checkpoint FOLDER] [--calls 200] [--json]

Start the server yourself, with the same base model. `--name` is its name for that model, or for the
adapter of `--checkpoint` that you loaded into it:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server \
        --model FOLDER --enable-lora --dtype bfloat16
    curl -X POST host:8000/v1/load_lora_adapter -H 'Content-Type: application/json' \
        -d '{"lora_name": "babylon-agent@1", "lora_path": "FOLDER"}'

The calls are like those of train_step.py. The server is asked about them as scoring does it, eight
at a time. Then the trainer's model computes the log-probabilities of the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false",
)  # fmt: skip
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import torch
from peft import set_peft_model_state_dict
from pydantic import SecretStr
from recorded_calls import recorded_calls
from safetensors.torch import load_file

from babylon_tasks.records.steps import Call, Logprobs
from babylon_tasks.scoring.logprobs.server import LogprobServer
from workers.trainer.torch.language_model import LanguageModel

AT_ONCE = 8  # as babylon_tasks/scoring/logprobs/attach.py


async def ask_all(url: str, name: str, calls: list[Call], key: str | None) -> list[Logprobs]:
    """Ask the server about every call, a few at a time."""
    slots = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=60) as client:
        server = LogprobServer(client, url, SecretStr(key) if key else None)

        async def ask(call: Call) -> Logprobs:
            async with slots:
                return await server.ask(name, call)

        return await asyncio.gather(*map(ask, calls))


@torch.no_grad()
def trainer_logprobs(model: LanguageModel, call: Call) -> Logprobs:
    """Compute the trainer's own log-probabilities of a response and its end of turn."""
    messages = [{"role": "system", "content": call.system}, {"role": "user", "content": call.user}]
    prompt, answer = model.chat.encode([model.chat.prompt(messages), call.response])
    answer += model.chat.end_ids
    tokens = torch.tensor([prompt + answer], device=model.device)
    predicts = torch.arange(tokens.shape[1])[None] >= len(prompt) - 1  # on the CPU
    predicts[0, -1] = False
    values, _ = model.logprobs(tokens, predicts)
    return Logprobs(tuple(answer), tuple(values.tolist()))


def load(base_model: str, checkpoint: Path | None) -> LanguageModel:
    """Load the trainer's model, with the checkpoint's adapter or one that changes nothing."""
    model = LanguageModel(base_model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    config = json.loads((checkpoint / "adapter_config.json").read_text()) if checkpoint else {}
    model.add_adapter(config.get("r", 8), config.get("lora_alpha", 16), seed=1)
    if checkpoint:
        weights = load_file(checkpoint / "adapter_model.safetensors")
        set_peft_model_state_dict(model.adapted, weights)
    return model


def compare(model: LanguageModel, calls: list[Call], answers: list[Logprobs]) -> dict[str, Any]:
    """Compare the two, token by token."""
    apart: list[float] = []
    other_tokens = 0
    for call, theirs in zip(calls, answers, strict=True):
        ours = trainer_logprobs(model, call)
        if ours.token_ids != theirs.token_ids:
            other_tokens += 1
            continue
        apart += [abs(a - b) for a, b in zip(ours.values, theirs.values, strict=True)]
    return {
        "calls": len(calls),
        "calls_of_other_tokens": other_tokens,
        "tokens": len(apart),
        "mean_apart": statistics.mean(apart),
        "most_apart": max(apart),
    }


def main() -> None:
    """Ask, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="base URL of the vLLM server")
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--name", required=True, help="the server's name for what is compared")
    parser.add_argument("--checkpoint", type=Path, help="the adapter behind that name")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--longest", type=int, default=2000, help="characters of a prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    model = load(arguments.base_model, arguments.checkpoint)
    samples = recorded_calls(model.chat, windows=1, agents=2 * arguments.calls, calls=1)
    every = [call for sample in samples for call in sample.calls]
    calls = [call for call in every if len(call.user) < arguments.longest][: arguments.calls]
    key = os.environ.get("LOGPROBS_API_KEY")
    asyncio.run(ask_all(arguments.url, arguments.name, calls[:1], key))  # it compiles at the first
    begun = time.monotonic()
    answers = asyncio.run(ask_all(arguments.url, arguments.name, calls, key))
    seconds = time.monotonic() - begun
    figures = {**compare(model, calls, answers), "calls_per_second": len(calls) / seconds}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:22}{value:.6g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
