"""What a trainer process imports: of ART and of the rest no more than a step uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

for package in ("torch", "transformers", "peft", "art"):
    pytest.importorskip(package)

from babylon_tasks.records.steps import StepRequest  # noqa: E402
from tests.unit.tiny import make_request, make_tiny_model, two_sided  # noqa: E402

# What `python -m workers.trainer` does at its first request, then all that it has imported.
PROGRAM = """
import json, sys
from babylon_tasks.records.steps import StepRequest
from workers.trainer.__main__ import _Answers, _make_trainer
import msgspec
kind = sys.argv[1]
request = msgspec.json.decode(sys.stdin.buffer.read(), type=StepRequest)
trainer = _make_trainer(kind, "cpu", _Answers())
if kind != "serverless":
    trainer.step(request, lambda progress: None)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
OF_A_WORKER = {"psycopg", "asyncpg", "celery", "kombu", "redis"}
OURS_OF_A_WORKER = {"babylon_tasks.store", "babylon_tasks.settings", "workers.tasks"}
OF_ART = {"litellm", "weave", "wandb", "polars", "trl", "vllm", "unsloth"}
HEAVY = {
    "torch": OF_ART | {"openai", "datasets", "torchvision"},
    "serverless": OF_ART | {"torch", "transformers", "peft"},
    "noop": OF_ART | {"torch", "transformers", "peft", "art", "openai"},
}


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> StepRequest:
    folder = tmp_path_factory.mktemp("start")
    return make_request(folder, make_tiny_model(folder / "model"), two_sided(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "serverless", "noop"])
def test_a_trainer_imports_no_more_than_a_step_uses(kind: str, request_: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        input=msgspec.json.encode(request_),
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert not modules & (HEAVY[kind] | OF_A_WORKER | OURS_OF_A_WORKER)
    assert ("art.loss" in modules) == (kind == "torch")
    assert ("art.serverless.client" in modules) == (kind == "serverless")
