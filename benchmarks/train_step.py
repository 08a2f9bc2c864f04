"""One training step: this project's trainer against ART's shape and a plain transformers loop.

    python benchmarks/train_step.py [--json] [--kl-penalty 0.1] [--trajectories 64]
    python benchmarks/train_step.py --device cuda [--json]

On a GPU it measures other shapes: see `gpu_step.py`.

On the CPU all three train the same tiny model, with the same LoRA adapter and ART's loss, on the
same recorded calls: 64 trajectories of 4 calls in windows of 8. The calls' lengths are log-normal
(median 500 tokens, sigma 1.0, cut at 4,000), and their responses have 20 to 80 tokens.

- *ours*: a whole step of the trainer, from the file of samples to the checkpoint. Sequences of
  similar length share a forward pass, there are logits of trained positions only, and one
  optimizer step.
- *ART's shape*: what its Unsloth service does. Every call is a sequence, padded to the length of
  the longest rounded up to a multiple of 2,048, with log-probabilities at every position in chunks
  of 1,024 and an optimizer step. All rows cost the same, so a few are measured and stand for all.
  Unsloth's kernels and vLLM's sleep are left out: neither runs on a CPU.
- *padded*: a plain loop. Batches of 8 in the recorded order, padded to the longest of the batch,
  attention mask, logits at every position, one optimizer step for each batch. Its reading and
  tokenizing are not counted.

Ours is measured before, between and after the others. Besides wall seconds, the figures give the
process's CPU seconds, which other programs on the machine disturb less. With a KL penalty, each
makes a pass of the base model; ours makes one more, because its mean is that of the step, not of
the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import art
import gpu_step
import torch
from art.local import LocalBackend
from art.loss import loss_fn, shift_tensor
from art.preprocessing.pack import packed_tensors_from_dir
from recorded_calls import recorded_calls, write_samples

from babylon_tasks.records.steps import Hyperparameters, Sample, StepRequest, StepResult
from babylon_tasks.simulation.tiny_model import make_tiny_model
from workers.trainer.samples import read_samples, trajectory_groups
from workers.trainer.torch import checkpoint
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.tokenized import tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.wandb.recorded import trajectory

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env

PER_WINDOW, CALLS = 8, 4
CHUNK = 1024  # ART's logprob_calculation_chunk_size
ART_ROWS = 8  # measured of the rows that cost the same
BATCH = 8


@dataclass(frozen=True)
class Cost:
    """Seconds by the wall clock, and CPU seconds of all cores."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, work: Callable[[], Any]) -> Cost:
        """Measure one run."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> Cost:
        """Return the cost of that many runs."""
        return Cost(self.wall * factor, self.cpu * factor)


def optimizer_step(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients, step and clear them, as our trainer does."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class ArtShapedService:
    """ART's Unsloth service in plain transformers: one padded sequence, one optimizer step."""

    def __init__(self, model: LanguageModel, request: StepRequest) -> None:
        self.model, self.request = model, request
        self.rows = self.row_length = 0
        self.training = Cost(0, 0)

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """Train on the packed tensors as ART's service does."""
        model, wanted = self.model, self.request.hyperparameters
        model.add_adapter(wanted.lora_rank, wanted.lora_alpha, self.request.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        checkpoint.load(model, optimizer, self.request)
        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        self.rows = disk_packed_tensors["num_sequences"]
        self.row_length = disk_packed_tensors["sequence_length"]
        for row in range(min(ART_ROWS, self.rows)):
            inputs = {
                key: value[row : row + 1].to(model.device)
                for key, value in tensors.items()
                if isinstance(value, torch.Tensor)
            }
            self.training += Cost.of(lambda inputs=inputs: self._row(inputs, config, optimizer))
            yield {"loss": 0.0}
        checkpoint.save(model, optimizer, self.request, self.rows)

    def _row(self, inputs: Any, config: Any, optimizer: torch.optim.Optimizer) -> None:
        logprobs, entropies = self._logprobs(inputs["tokens"])
        reference = None
        if config.kl_penalty_coef > 0:
            with torch.no_grad(), self.model.as_base():
                reference, _ = self._logprobs(inputs["tokens"])
        kl = {"kl_penalty_coef": config.kl_penalty_coef}
        loss_fn(inputs, logprobs, reference, entropies, kl).policy_loss.backward()
        optimizer_step(self.model, optimizer)

    def _logprobs(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute every position in chunks, as `art.unsloth.train._calculate_logprobs` does."""
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
    """ART's backend, with its tokens and its padding unchanged."""

    def __init__(self, path: str, service: ArtShapedService) -> None:
        super().__init__(path=path, in_process=True)
        self._service = service

    async def _get_service(self, model: Any) -> Any:
        return self._service


def art_groups(samples: list[Sample]) -> list[art.TrajectoryGroup]:
    """ART's form of the samples, its answers as plain messages."""
    return [
        art.TrajectoryGroup(
            trajectory(
                one,
                [
                    [*call.prompt(), {"role": "assistant", "content": call.response}]
                    for call in one.calls
                ],
            )
            for one in group
        )
        for group in trajectory_groups(samples)
    ]


def art_shaped_step(model: LanguageModel, request: StepRequest) -> tuple[Cost, ArtShapedService]:
    """Run one step of ART's shape, and return its cost for all rows."""
    service = ArtShapedService(model, request)
    backend = ArtShapedBackend(str(Path(request.scratch_dir) / "art"), service)
    backend._tokenizers[(request.base_model, None)] = model.tokenizer  # warm
    backend._image_processors[request.base_model] = None
    wanted = request.hyperparameters
    trained = art.TrainableModel(
        name=request.model_name, project="babylon", base_model=request.base_model
    )
    step = backend.train(
        trained,
        art_groups(read_samples(request.samples_path)),
        learning_rate=wanted.learning_rate,
        kl_penalty_coef=wanted.kl_penalty,
        advantage_balance=1 - wanted.negative_scale,
        allow_training_without_logprobs=True,
        save_checkpoint=False,
    )
    whole = Cost.of(lambda: asyncio.run(step))
    unmeasured = service.rows / min(ART_ROWS, service.rows) - 1
    return whole + service.training.times(unmeasured), service


def padded_loop(model: LanguageModel, request: StepRequest, step: StepTensors) -> None:
    """Train batch after batch, in the recorded order; the mean of the KL is the batch's."""
    wanted = request.hyperparameters
    model.add_adapter(wanted.lora_rank, wanted.lora_alpha, request.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=wanted.learning_rate)
    checkpoint.load(model, optimizer, request)
    for first in range(0, len(step.lengths), BATCH):
        rows = list(range(first, min(first + BATCH, len(step.lengths))))
        inputs = step.take(rows, model.device).inputs
        longest = inputs["tokens"].shape[1]
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
        for number, row in enumerate(rows):
            mask[number, : step.lengths[row]] = 1

        def logprobs(tokens: torch.Tensor, mask: torch.Tensor = mask) -> torch.Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda"):
                logits = model.network(
                    input_ids=tokens, attention_mask=mask, use_cache=False
                ).logits.float()
            following = shift_tensor(tokens, 0)
            return torch.log_softmax(logits, -1).gather(-1, following[..., None]).squeeze(-1)

        reference = None
        if wanted.kl_penalty > 0:
            with torch.no_grad(), model.as_base():
                reference = logprobs(inputs["tokens"])
        kl = {"kl_penalty_coef": wanted.kl_penalty}
        loss = loss_fn(inputs, logprobs(inputs["tokens"]), reference, None, kl)
        loss.policy_loss.backward()
        optimizer_step(model, optimizer)


def measure(folder: Path, trajectories: int, kl_penalty: float) -> dict[str, Any]:
    """Measure all three in turn, on one model in this process."""
    base_model = str(make_tiny_model(folder / "model"))
    trainer = TorchTrainer("cpu-0")
    model = trainer._load_model(base_model)
    samples = recorded_calls(model.chat, trajectories // PER_WINDOW, PER_WINDOW, CALLS)

    def request(name: str, parent: str | None, some: list[Any]) -> StepRequest:
        (folder / name).mkdir()
        write_samples(folder / name / "samples.jsonl", some)
        return StepRequest(
            model_name="benchmark", base_model=base_model, parent=parent,
            samples_path=str(folder / name / "samples.jsonl"), scratch_dir=str(folder / name),
            output_dir=str(folder / name / "out"), seed=1,
            hyperparameters=Hyperparameters(
                learning_rate=1e-4, warmup_steps=0, lora_rank=8, lora_alpha=16,
                kl_penalty=kl_penalty, negative_scale=0.3, max_sequence_tokens=4096,
                micro_batch_tokens=16_384,
            ),
        )  # fmt: skip

    first = request("first", None, samples[:PER_WINDOW])
    trainer.step(first, lambda progress: None)  # warms up, and is the parent of all
    ours: list[Cost] = []
    results: list[StepResult] = []

    def our_step() -> None:
        asked = request(f"ours{len(ours)}", first.output_dir, samples)
        ours.append(
            Cost.of(lambda: results.append(trainer.step(asked, lambda progress: None)))
        )  # fmt: skip

    our_step()
    arts, service = art_shaped_step(model, request("art", first.output_dir, samples))
    our_step()
    tokenized = tokenize_groups(model.chat, trajectory_groups(samples), 4096)
    step = StepTensors.from_packed(tokenized.sequences.packed(0.7))
    plain = request("padded", first.output_dir, samples)
    padded = Cost.of(lambda: padded_loop(model, plain, step))
    our_step()

    mine = Cost(*(statistics.median(getattr(c, name) for c in ours) for name in ("wall", "cpu")))
    result = results[0]
    outside = [1 - _in_step(r) / c.wall for r, c in zip(results, ours, strict=True)]
    return {
        "device": result.device,
        "threads": torch.get_num_threads(),
        "trajectories": len(samples),
        "calls": result.sequences,
        "context_tokens": result.context_tokens,
        "longest": max(step.lengths),
        "kl_penalty": kl_penalty,
        "ratio_art_shape": round(arts.wall / mine.wall, 1),
        "ratio_padded": round(padded.wall / mine.wall, 1),
        "ratio_art_shape_cpu": round(arts.cpu / mine.cpu, 1),
        "ratio_padded_cpu": round(padded.cpu / mine.cpu, 1),
        "tokens_per_second": round(result.context_tokens / mine.wall),
        "outside_share": round(statistics.median(outside), 4),
        "ours_seconds": [round(c.wall, 2) for c in ours],
        "art_shape_seconds": round(arts.wall, 1),
        "art_shape_row_length": service.row_length,
        "art_shape_rows_measured": min(ART_ROWS, service.rows),
        "padded_seconds": round(padded.wall, 1),
    }


def _in_step(result: StepResult) -> float:
    """Return the seconds of forward, backward and optimizer."""
    phases = result.seconds_by_phase
    return phases["forward_backward"] + phases["optimizer"]


def report(figures: dict[str, Any]) -> str:
    """Write the figures for people."""
    seconds = statistics.median(figures["ours_seconds"])
    return (
        "{trajectories} trajectories, {calls} calls, {context_tokens} tokens (the longest "
        "{longest}), KL penalty {kl_penalty}, on {device} ({threads} threads)\n"
        f"  ours         {seconds:8.1f} s  {{tokens_per_second}} tokens/s, "
        "{outside_share:.1%} outside forward, backward and optimizer\n"
        "  ART's shape  {art_shape_seconds:8.1f} s  {ratio_art_shape} times ours "
        "({ratio_art_shape_cpu} in CPU seconds)\n"
        "  padded       {padded_seconds:8.1f} s  {ratio_padded} times ours "
        "({ratio_padded_cpu} in CPU seconds)"
    ).format(**figures)


def measure_on_gpu(scaled_down: bool, profile: bool, as_json: bool) -> None:
    """Measure the shapes of `gpu_step.py`, one after another."""
    if not torch.cuda.is_available() and not scaled_down:
        sys.exit(f"torch {torch.__version__} sees no GPU; --scaled-down tries the code without")
    figures = gpu_step.measure_all(scaled_down, profile)
    print(json.dumps(figures) if as_json else gpu_step.report(figures))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--kl-penalty", type=float, default=0.1, help="0: without")
    parser.add_argument("--trajectories", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scaled-down", action="store_true", help="cuda's code, on a CPU too")
    parser.add_argument("--profile", action="store_true", help="on cuda: where its time goes")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        measure_on_gpu(arguments.scaled_down, arguments.profile, arguments.json)
        return
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.trajectories, arguments.kl_penalty)
    text = json.dumps(figures) if arguments.json else report(figures)
    os.write(stdout, (text + "\n").encode())


if __name__ == "__main__":
    main()
