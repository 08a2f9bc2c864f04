"""Peak host memory of one step over 200 agents of 60 calls each.

    python benchmarks/step_memory.py [--json]

12,000 recorded calls as in train_step.py (about 10 million tokens) go through the trainer with the
tiny model. It reads, tokenizes and packs the file of samples, puts every micro-batch together, and
writes the checkpoint. It trains only the first micro-batches, which hold the longest calls: the
others need no more memory, and all would take an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorded_calls import recorded_calls, step_request, write_samples

from babylon_tasks.simulation.tiny_model import make_tiny_model
from workers.trainer.torch import trainer as torch_trainer
from workers.trainer.torch.batches import StepTensors, micro_batches
from workers.trainer.torch.step import TorchStep
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.torch.updates import Updates

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env

AGENTS, CALLS = 200, 60
TRAINED = 3  # micro-batches


class ShortStep(TorchStep):
    """A step that puts every micro-batch together and trains the first few."""

    def _train(self, updates: Updates, mini_batches: list[StepTensors]) -> None:
        (step,) = mini_batches
        batches = micro_batches(step.lengths, self._model.most_tokens_at_once)
        for rows in batches:
            step.take(rows, self._model.device)
        rows = [row for rows in batches[:TRAINED] for row in rows]
        some = dataclasses.replace(
            step,
            starts=[step.starts[row] for row in rows],
            lengths=[step.lengths[row] for row in rows],
        )
        super()._train(updates, [some])


def peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path) -> dict[str, Any]:
    """Measure one step; the process must be a new one."""
    base_model = str(make_tiny_model(folder / "model"))
    trainer = TorchTrainer("cpu-0")
    model = trainer._load_model(base_model)
    write_samples(folder / "samples.jsonl", recorded_calls(model.chat, 1, AGENTS, CALLS))
    request = step_request(folder, base_model)
    before = peak_bytes()
    torch_trainer.TorchStep = ShortStep  # type: ignore[misc]
    started = time.monotonic()
    result = trainer.step(request, lambda progress: None)
    return {
        "calls": result.sequences + result.dropped_sequences,
        "context_tokens": result.context_tokens,
        "peak_gb": round(peak_bytes() / 1e9, 2),
        "before_the_step_gb": round(before / 1e9, 2),
        "samples_file_gb": round(Path(request.samples_path).stat().st_size / 1e9, 3),
        "tokenize_seconds": round(result.seconds_by_phase["tokenize"], 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    line = (
        "{calls} calls, {context_tokens} tokens: peak {peak_gb} GB, before {before_the_step_gb} GB"
    )
    text = json.dumps(figures) if arguments.json else line.format(**figures)
    os.write(stdout, (text + "\n").encode())


if __name__ == "__main__":
    main()
