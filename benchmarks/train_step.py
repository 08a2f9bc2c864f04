"""Seconds per training step: this project's trainer against the shape of ART's own service.

    python benchmarks/train_step.py [--json] [--repeats 5] [--kl-penalty 0.1]

Both train the same tiny model from the same weights on the same 32 recorded trajectories of about
150 tokens (one call each), with the same ART: `LocalBackend.train`, its advantages, its packing,
its loss. Both tokenize, load the parent's adapter, train, and save a checkpoint; warm, the median.

- *ours*: rows of like length share a forward pass, logits of trained positions only, one optimizer
  step. Every token counts the same in the loss.
- *ART's shape*: what its Unsloth service does with the same tensors: every trajectory a sequence
  padded to 2,048 tokens, log-probabilities at every position in chunks of 1,024, an optimizer step
  each. Without Unsloth's kernels and without putting vLLM to sleep: neither runs on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import art
import msgspec
import torch
from art.local import LocalBackend
from art.loss import loss_fn, shift_tensor
from art.preprocessing.pack import packed_tensors_from_dir

from babylon_tasks.demo.tiny_model import make_tiny_model
from babylon_tasks.training import Call, Hyperparameters, Sample, StepRequest
from workers.trainer import checkpoint
from workers.trainer.language_model import LanguageModel
from workers.trainer.samples import read_samples, trajectory_groups
from workers.trainer.torch_trainer import TorchTrainer

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env

TRAJECTORIES, PER_WINDOW, TOKENS = 32, 4, 150
CHUNK = 1024  # ART's logprob_calculation_chunk_size


class ArtShapedService:
    """ART's Unsloth service in plain transformers: one padded sequence, one optimizer step."""

    def __init__(self, model: LanguageModel, request: StepRequest) -> None:
        self.model, self.request = model, request
        self.optimizer_steps = 0

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        model, wanted = self.model, self.request.hyperparameters
        model.add_adapter(wanted.lora_rank, wanted.lora_alpha, self.request.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        checkpoint.load(model, optimizer, self.request)
        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        for row in range(disk_packed_tensors["num_sequences"]):
            inputs = {
                key: value[row : row + 1].to(model.device)
                for key, value in tensors.items()
                if isinstance(value, torch.Tensor)
            }
            logprobs, entropies = self._logprobs(inputs["tokens"])
            reference = None
            if config.kl_penalty_coef > 0:
                with torch.no_grad(), model.as_base():
                    reference, _ = self._logprobs(inputs["tokens"])
            loss = loss_fn(inputs, logprobs, reference, entropies, _config)
            loss.policy_loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.optimizer_steps += 1
            yield {"loss": float(loss.policy_loss.detach())}
        checkpoint.save(model, optimizer, self.request, self.optimizer_steps)

    def _logprobs(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `art.unsloth.train._calculate_logprobs`: every position, in chunks."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.model.device.type == "cuda"):
            hidden = self.model._body()(input_ids=tokens, use_cache=False).last_hidden_state
            following = shift_tensor(tokens, 0)
            logprobs, entropies = [], []
            for start in range(0, tokens.shape[1], CHUNK):
                chunk = slice(start, start + CHUNK)
                logits = self.model._logits(hidden[:, chunk]).float()
                selected = logits.gather(-1, following[:, chunk, None]).squeeze(-1)
                total = logits.logsumexp(-1)
                logprobs.append(selected - total)
                full = logits - total[..., None]
                entropies.append(-(full.exp() * full).sum(-1))
        return torch.cat(logprobs, 1), torch.cat(entropies, 1)


class ArtShapedBackend(LocalBackend):  # type: ignore[misc]
    """ART's tokens and its padding, unchanged."""

    def __init__(self, path: str, service: ArtShapedService) -> None:
        super().__init__(path=path, in_process=True)
        self._service = service

    async def _get_service(self, model: Any) -> Any:
        return self._service


def art_shaped_step(model: LanguageModel, request: StepRequest) -> int:
    """Run one step of ART's shape; returns its optimizer steps."""
    service = ArtShapedService(model, request)
    backend = ArtShapedBackend(str(Path(request.scratch_dir) / "art"), service)
    backend._tokenizers[(request.base_model, None)] = model.tokenizer  # warm
    backend._image_processors[request.base_model] = None
    wanted = request.hyperparameters
    trained = art.TrainableModel(
        name=request.model_name, project="babylon", base_model=request.base_model
    )
    asyncio.run(
        backend.train(
            trained,
            trajectory_groups(read_samples(request.samples_path)),
            learning_rate=wanted.learning_rate,
            kl_penalty_coef=wanted.kl_penalty,
            advantage_balance=1 - wanted.negative_scale,
            allow_training_without_logprobs=True,
            save_checkpoint=False,
        )
    )
    return service.optimizer_steps


def make_samples(model: LanguageModel) -> list[Sample]:
    """Trajectories of one call each, `TOKENS` tokens give or take a third."""
    rng = random.Random(1)
    words = ["momentum", "price", "rising", "falling", "market", "shares", "position", "risk"]
    samples = []
    for number in range(TRAJECTORIES):
        target = rng.randint(TOKENS * 2 // 3, TOKENS * 4 // 3)
        user = ""
        response = "BUY because the momentum is rising" if number % 2 else "HOLD"
        while len(model.chat.encode([user])[0]) < target - 40:
            user += rng.choice(words) + " "
        call = Call("You are a trading agent.", user, response)
        window = f"w{number // PER_WINDOW}"
        samples.append(Sample(window, f"t{number}", rng.random(), [call]))
    return samples


def median_seconds(repeats: int, step: Any) -> tuple[float, list[float]]:
    """The median of `repeats` runs after one that is not counted."""
    seconds = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), seconds[1:]


def measure(folder: Path, repeats: int, kl_penalty: float) -> dict[str, Any]:
    """Both trainers, in turn, on one model in this process."""
    base_model = str(make_tiny_model(folder / "model"))
    trainer = TorchTrainer("auto" if torch.cuda.is_available() else "cpu-0")
    model = trainer._load_model(base_model)
    samples = make_samples(model)
    (folder / "samples.jsonl").write_bytes(
        b"".join(msgspec.json.encode(s) + b"\n" for s in samples)
    )

    def request(name: str, parent: str | None) -> StepRequest:
        return StepRequest(
            model_name="benchmark", base_model=base_model, parent=parent,
            samples_path=str(folder / "samples.jsonl"), scratch_dir=str(folder / name),
            output_dir=str(folder / name / "out"), seed=1,
            hyperparameters=Hyperparameters(
                learning_rate=1e-4, lora_rank=8, lora_alpha=16, kl_penalty=kl_penalty,
                negative_scale=0.3, max_sequence_tokens=2048, micro_batch_tokens=16_384,
            ),
        )  # fmt: skip

    first = request("first", None)
    result = trainer.step(first, lambda progress: None)
    theirs, their_runs = median_seconds(
        repeats, lambda n: art_shaped_step(model, request(f"art{n}", first.output_dir))
    )
    ours, our_runs = median_seconds(
        repeats,
        lambda n: trainer.step(request(f"ours{n}", first.output_dir), lambda progress: None),
    )
    return {
        "device": result.device,
        "threads": torch.get_num_threads(),
        "trajectories": TRAJECTORIES,
        "tokens_per_trajectory": round(result.context_tokens / TRAJECTORIES, 1),
        "kl_penalty": kl_penalty,
        "ours_seconds": round(ours, 4),
        "art_shape_seconds": round(theirs, 4),
        "times_faster": round(theirs / ours, 1),
        "ours_optimizer_steps": result.optimizer_steps,
        "art_shape_optimizer_steps": TRAJECTORIES,
        "ours_runs": [round(s, 4) for s in our_runs],
        "art_shape_runs": [round(s, 4) for s in their_runs],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5, help="runs after the warm-up")
    parser.add_argument("--kl-penalty", type=float, default=0.1)
    arguments = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.repeats, arguments.kl_penalty)
    if arguments.json:
        text = json.dumps(figures)
    else:
        text = (
            f"{figures['trajectories']} trajectories of {figures['tokens_per_trajectory']} tokens "
            f"on {figures['device']} ({figures['threads']} threads), "
            f"KL penalty {figures['kl_penalty']}\n"
            f"  ours         {figures['ours_seconds']:8.3f} s  {figures['ours_optimizer_steps']} "
            f"optimizer step\n"
            f"  ART's shape  {figures['art_shape_seconds']:8.3f} s  "
            f"{figures['art_shape_optimizer_steps']} optimizer steps\n"
            f"  {figures['times_faster']} times faster"
        )
    os.write(stdout, (text + "\n").encode())


if __name__ == "__main__":
    main()
