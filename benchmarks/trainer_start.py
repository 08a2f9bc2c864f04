"""CPU seconds that a trainer process needs before it can compute its first step.

    python benchmarks/trainer_start.py [--json] [--kind torch|serverless|noop]

A process does what `python -m workers.trainer` does at its first request: it imports what a step
uses and, for torch, loads the tiny model and makes its adapter and optimizer. All its threads
count; other programs disturb CPU seconds less than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_PROGRAM = """
import json, resource, sys

from workers.trainer.__main__ import _Answers, _make_trainer
from babylon_tasks.records.steps import Hyperparameters, StepRequest

kind, base_model, figures = sys.argv[1:]
wanted = Hyperparameters(
    learning_rate=1e-4, warmup_steps=0, lora_rank=8, lora_alpha=16, kl_penalty=0.1,
    negative_scale=0.3, max_sequence_tokens=4096, micro_batch_tokens=16_384,
)
request = StepRequest(
    model_name="benchmark", base_model=base_model, parent=None, samples_path="",
    scratch_dir="", output_dir="", seed=1, hyperparameters=wanted,
)

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return round(usage.ru_utime + usage.ru_stime, 2)

trainer = _make_trainer(kind, "cpu", _Answers())
imported = used()
if kind == "torch":
    from workers.trainer.torch.step import TorchStep
    TorchStep(trainer._load_model(base_model), request, lambda progress: None)._load()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with open(figures, "w") as file:
    json.dump({"imports": imported, "cpu_seconds": used(), "memory_mb": memory}, file)
"""


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Measure one start; the model is made before."""
    if kind == "torch":
        # In another process: what this one has imported does not matter to the one measured.
        from babylon_tasks.simulation.tiny_model import make_tiny_model

        make_tiny_model(folder / "model")
    figures = folder / "figures.json"
    subprocess.run(
        [sys.executable, "-c", _PROGRAM, kind, str(folder / "model"), str(figures)],
        check=True,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
    )
    loaded: dict[str, float] = json.loads(figures.read_text())
    return loaded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--kind", choices=["torch", "serverless", "noop"], default="torch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.kind, Path(folder))
    line = "{cpu_seconds} CPU seconds, {imports} of them imports; {memory_mb} MB"
    print(json.dumps(figures) if arguments.json else line.format(**figures))


if __name__ == "__main__":
    main()
