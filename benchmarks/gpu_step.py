"""The shapes of `train_step.py --device cuda`: real sizes, random weights, nothing downloaded.

    python benchmarks/train_step.py --device cuda [--json] [--profile]
    python benchmarks/train_step.py --device cuda --scaled-down    # the same code on a CPU

The models have the configurations of Qwen2.5-0.5B and Qwen3-0.6B, with the vocabulary of 151,936 in
embeddings and head (the tiny model's tokenizer uses the first 2,000), LoRA rank 16, bfloat16.

- *ours*: a whole warm step of the trainer, from the file of samples to the checkpoint.
- *padded*: a plain transformers and peft loop: batches of 8 in the recorded order, padded to the
  longest, attention mask, autocast, logits at every position, one optimizer step for each batch.
  Its reading and tokenizing are not counted. If 8 do not fit, it takes 4, then 2, then 1.

Each shape runs in a process of its own, so one that fails does not stop the others. The matrix rate
behind the MFU is measured in that process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # likewise
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from art.loss import loss_fn, shift_tensor
from peft import LoraConfig, get_peft_model
from recorded_calls import recorded_calls, write_samples
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from babylon_tasks.records.steps import Hyperparameters, StepRequest, StepResult
from babylon_tasks.simulation.tiny_model import _tokenizer
from workers.trainer.samples import read_samples, trajectory_groups
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.matrix_rate import matrix_rate
from workers.trainer.torch.memory import out_of_memory
from workers.trainer.torch.tokenized import tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env

SECONDS = 150  # for one shape
STEPS = 3  # measured, after one that warms up
BATCH = 8  # of the plain loop
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Shape:
    """A model by its configuration, and recorded calls for it."""

    config: Any
    kl_penalty: float
    windows: int
    agents: int
    calls: int
    median: int  # tokens of a call, log-normal
    sigma: float
    longest: int
    response: tuple[int, int]
    plain: bool = True

    def scaled_down(self) -> Shape:
        """Make the shape so small that a CPU takes seconds."""
        small = self.config.to_dict() | {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096,
            "layer_types": None,
        }  # fmt: skip
        return replace(
            self, config=type(self.config).from_dict(small), windows=1, agents=4,
            median=self.median // 16, longest=self.longest // 16,
            response=tuple(max(2, tokens // 16) for tokens in self.response),
        )  # fmt: skip


QWEN2_5_05B = Qwen2Config(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32_768,
    tie_word_embeddings=True,
)  # fmt: skip
QWEN3_06B = Qwen3Config(
    vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
    tie_word_embeddings=True,
)  # fmt: skip
CALLS_OF_2000 = Shape(QWEN2_5_05B, 0.0, 8, 8, 4, 2000, 0.5, 4000, (20, 80))
SHAPES = {
    "qwen2.5-0.5b, calls of 2,000 tokens": CALLS_OF_2000,
    "the same, KL penalty 0.1": replace(CALLS_OF_2000, kl_penalty=0.1),
    # The yardstick: prime-rl's trainer, 13,342 tokens/s on an H100. Nearly all tokens are trained.
    "qwen3-0.6b, sequences of 16,384 tokens": Shape(
        QWEN3_06B, 0.0, 1, 8, 1, 16_384, 0.0, 16_384, (15_000, 15_000), plain=False
    ),
}


def make_model(folder: Path, shape: Shape, device: torch.device) -> str:
    """Write a model with random weights in bfloat16, and the tiny model's tokenizer."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    shape.config.eos_token_id, shape.config.pad_token_id = (
        tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(shape.config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return str(folder)


class PlainLoop:
    """A training loop with transformers and peft, without further tuning."""

    def __init__(self, base_model: str, device: torch.device) -> None:
        network = AutoModelForCausalLM.from_pretrained(
            base_model, dtype=torch.bfloat16, device_map=str(device)
        )
        lora = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model, self.device = get_peft_model(network, lora), device
        self.model.train()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.weights, self.optimizer = weights, torch.optim.AdamW(weights, lr=1e-4)

    def run(self, step: StepTensors, kl_penalty: float, batch: int) -> None:
        """Make one optimizer step for each batch, in the recorded order."""
        for first in range(0, len(step.lengths), batch):
            rows = list(range(first, min(first + batch, len(step.lengths))))
            inputs = step.take(rows, self.device).inputs
            places = torch.arange(inputs["tokens"].shape[1])
            mask = places < torch.tensor([step.lengths[row] for row in rows])[:, None]
            mask = mask.long().to(self.device)
            reference = None
            if kl_penalty > 0:
                with torch.no_grad(), self.model.disable_adapter():
                    reference = self._logprobs(inputs["tokens"], mask)
            logprobs = self._logprobs(inputs["tokens"], mask)
            kl = {"kl_penalty_coef": kl_penalty}
            loss_fn(inputs, logprobs, reference, None, kl).policy_loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        finish(self.device)

    def _logprobs(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        following = shift_tensor(tokens, 0)[..., None]
        return torch.log_softmax(logits.float(), -1).gather(-1, following).squeeze(-1)


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def padded(base_model: str, device: torch.device, step: StepTensors, kl: float) -> dict[str, Any]:
    """Measure the seconds of the plain loop, with the largest batch that fits."""
    batch = BATCH
    while batch:
        try:
            loop = PlainLoop(base_model, device)
            loop.run(step, kl, batch)  # warms up, and finds out whether all fit
            started = time.perf_counter()
            loop.run(step, kl, batch)
            return {"padded_seconds": time.perf_counter() - started, "padded_batch": batch}
        except Exception as error:
            if not out_of_memory(error):
                raise
        loop = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
        batch //= 2
    return {"padded_batch": 0}


def measure(shape: Shape, folder: Path, device: torch.device, profile: bool) -> dict[str, Any]:
    """Measure one shape."""
    base_model = make_model(folder / "model", shape, device)
    trainer = TorchTrainer("GPU" if device.type == "cuda" else "cpu")
    # In bfloat16 also on the CPU: there it is the path of CUDA that is tried.
    model = trainer._model = LanguageModel(base_model, device, torch.bfloat16)
    samples = recorded_calls(
        model.chat, shape.windows, shape.agents, shape.calls,
        median=shape.median, sigma=shape.sigma, longest=shape.longest, response=shape.response,
    )  # fmt: skip

    def our_step(name: str, parent: str | None) -> tuple[float, StepResult, str]:
        scratch = folder / name
        scratch.mkdir()
        write_samples(scratch / "samples.jsonl", samples)
        request = StepRequest(
            model_name="benchmark", base_model=base_model, parent=parent,
            samples_path=str(scratch / "samples.jsonl"), scratch_dir=str(scratch),
            output_dir=str(scratch / "out"), seed=1,
            hyperparameters=Hyperparameters(
                learning_rate=1e-4, warmup_steps=0, lora_rank=RANK, lora_alpha=ALPHA,
                kl_penalty=shape.kl_penalty, negative_scale=0.3,
                max_sequence_tokens=shape.longest + 1, micro_batch_tokens=16_384,
            ),
        )  # fmt: skip
        finish(device)
        started = time.perf_counter()
        result = trainer.step(request, lambda progress: None)
        finish(device)
        return time.perf_counter() - started, result, request.output_dir

    _, _, parent = our_step("warm-up", None)
    steps = [our_step(f"step-{number}", parent) for number in range(STEPS)]
    seconds = statistics.median(wall for wall, _, _ in steps)
    result = steps[0][1]
    in_step = [
        r.seconds_by_phase["forward_backward"] + r.seconds_by_phase["optimizer"]
        for _, r, _ in steps
    ]
    outside = [1 - s / wall for s, (wall, _, _) in zip(in_step, steps, strict=True)]
    figures: dict[str, Any] = {
        "device": result.device,
        "kl_penalty": shape.kl_penalty,
        "sequences": result.sequences,
        "context_tokens": result.context_tokens,
        "trained_tokens": result.trainable_tokens,
        "tokens_per_second": round(result.context_tokens / seconds),
        "tokens_per_second_in_step": round(result.context_tokens / statistics.median(in_step)),
        "mfu": round(statistics.median(r.mfu or 0.0 for _, r, _ in steps), 4),
        "matrix_tflops": round((matrix_rate(device.type) or 0) / 1e12, 2),
        "outside_share": round(statistics.median(outside), 4),
        "ours_seconds": [round(wall, 3) for wall, _, _ in steps],
        "seconds_by_phase": {k: round(v, 3) for k, v in steps[-1][1].seconds_by_phase.items()},
        "micro_batches": result.metrics["micro_batches"],
        "peak_gb": round((result.peak_memory_bytes or 0) / 1e9, 2),
        "activations_kept": not model.network.is_gradient_checkpointing,
    }
    if profile:
        show_profile(lambda: our_step("profiled", parent))
    if shape.plain:
        tokenized = tokenize_groups(
            model.chat, trajectory_groups(read_samples(folder / "step-0" / "samples.jsonl")),
            shape.longest + 1,
        )  # fmt: skip
        step = StepTensors.from_packed(tokenized.sequences.packed(0.7))
        figures |= padded(base_model, device, step, shape.kl_penalty)
        if "padded_seconds" in figures:
            figures["ratio_padded"] = round(figures["padded_seconds"] / seconds, 2)
            figures["padded_seconds"] = round(figures["padded_seconds"], 3)
    return figures


def show_profile(step: Any) -> None:
    """Print to stderr where the device's time goes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        order = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profile:
        step()
    print(profile.key_averages().table(sort_by=order, row_limit=25), file=sys.stderr)


def measure_all(scaled_down: bool, profile: bool) -> dict[str, Any]:
    """Measure each shape in a process of its own; a failed one has its reason as `error`."""
    figures = {}
    for number, name in enumerate(SHAPES):
        command = [sys.executable, str(Path(__file__).resolve()), str(number)]
        command += ["--scaled-down"] * scaled_down + ["--profile"] * profile
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True
            )
            figures[name] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            figures[name] = {"error": f"not done within {SECONDS} s"}
        except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
            figures[name] = {"error": str(error)}
        print(f"{name}: {json.dumps(figures[name])}", file=sys.stderr, flush=True)
    return figures


def report(figures: dict[str, Any]) -> str:
    """Write the figures for people."""
    lines = []
    for name, shape in figures.items():
        if "error" in shape:
            lines.append(f"{name}: {shape['error']}")
            continue
        lines.append(
            "{name} ({device}): {context_tokens} tokens, {tokens_per_second} tokens/s; "
            "MFU {mfu:.1%} of {matrix_tflops} TFLOP/s; {outside_share:.1%} outside; "
            "{peak_gb} GB".format(name=name, **shape)
        )
        if "padded_batch" in shape:
            lines[-1] += "; padded (batches of {}): {} times ours".format(
                shape["padded_batch"], shape.get("ratio_padded", "does not fit")
            )
    return "\n".join(lines)


def main() -> None:
    """Measure one shape and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", type=int)
    parser.add_argument("--scaled-down", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    shape = list(SHAPES.values())[arguments.shape]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.scaled_down:
        shape = shape.scaled_down()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(shape, Path(folder), device, arguments.profile)
    os.write(stdout, json.dumps(figures).encode())


if __name__ == "__main__":
    main()
