"""Which versions the embedded engine loads: whole ones, that answer as the trainer's."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from babylon_tasks.checkpoints import files
from babylon_tasks.records.proofs import PROOF, Proof
from tests.unit.embedded import Asked, chat, make_checkpoint, version
from tests.unit.tiny import make_tiny_model
from workers.serve.backend import CannotServe
from workers.serve.embedded.lora import WEIGHTS, Adapter, Overlay
from workers.trainer.torch.fingerprint import fingerprint


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def asked(base_model: str) -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        asked = Asked(runner)
        asked.load(version(base_model, 0))
        yield asked
        asked.run(asked.backend.close())


def saved(source: Path, target: Path) -> str:
    files.save(source, str(target), "nonce")
    return str(target)


def refused(asked: Asked, base_model: str, checkpoint: str | None) -> str:
    with pytest.raises(CannotServe) as raised:
        asked.load(version(base_model, 5, checkpoint))
    assert all(loaded.step == 0 for loaded in asked.backend.loaded())
    return str(raised.value)


def test_a_version_proves_that_it_answers_as_itself(
    asked: Asked, base_model: str, tmp_path: Path
) -> None:
    """The weights of another step do not pass under its name."""
    ids = tuple(AutoTokenizer.from_pretrained(base_model).encode("Say YES. " * 20))
    base = asked.backend._versions[version(base_model, 0)].base
    adapters, proofs = [], []
    for seed in (1, 2):
        folder = Path(make_checkpoint(base_model, tmp_path, seed, noise=0.05))
        adapter = base.overlay.read(folder)
        values = [asked.backend._engine.run(partial(base.logprobs, ids, of)).result(30)
                  for of in (adapter, None)]  # fmt: skip
        adapters.append(tmp_path / f"source{seed}")
        proofs.append(msgspec.json.encode(Proof(ids, tuple(values[0]), tuple(values[1]))))
    (adapters[0] / PROOF).write_bytes(proofs[1])
    reason = refused(asked, base_model, saved(adapters[0], tmp_path / "agent" / "5-1"))
    assert "does not answer as itself" in reason
    (adapters[0] / PROOF).write_bytes(proofs[0])
    good = version(base_model, 6, saved(adapters[0], tmp_path / "agent" / "6-1"))
    asked.load(good)
    assert good in asked.backend.loaded()
    asked.run(asked.backend.unload(good))
    (adapters[0] / PROOF).write_bytes(b"{}")
    assert PROOF in refused(asked, base_model, saved(adapters[0], tmp_path / "agent" / "7-1"))


def test_files_that_are_no_version_of_this_model_are_refused(
    asked: Asked, base_model: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(base_model, tmp_path, 1)
    source = tmp_path / "source1"
    assert "no files" in refused(asked, base_model, None)
    assert "cannot read the checkpoint" in refused(asked, base_model, str(tmp_path / "nothing"))
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    (damaged / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-9] + b"123456789")
    assert "is damaged" in refused(asked, base_model, str(damaged))
    (tmp_path / "noop").mkdir()
    (tmp_path / "noop" / "trainer_state.json").write_text("{}")
    assert "TRAINER=noop" in refused(asked, base_model, saved(tmp_path / "noop", tmp_path / "n"))
    weights = load_file(source / WEIGHTS)
    key, value = next(iter(weights.items()))
    for number, (changed, reason) in enumerate(
        [
            ({**weights, key: value[:, 1:]}, "another rank or model"),
            ({k: v for k, v in weights.items() if k != key}, "another rank or model"),
            ({**weights, "base_model.model.lm_head.weight": value.clone()}, "more than LoRA"),
            ({k.replace("layers.3", "layers.9"): v for k, v in weights.items()}, "another model"),
            ({**weights, key: value * float("nan")}, "not finite"),
            ({}, "no layer"),
        ]
    ):
        odd = Path(shutil.copytree(source, tmp_path / f"odd{number}"))
        save_file({k: v.contiguous() for k, v in changed.items()}, odd / WEIGHTS)
        assert reason in refused(asked, base_model, saved(odd, tmp_path / "store" / str(number)))


def test_two_base_models_answer_at_once_and_an_unused_one_goes(
    asked: Asked, base_model: str, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    third = make_tiny_model(tmp_path / "third", seed=6)
    ours, theirs = version(base_model, 0), version(other, 0)
    asked.load(theirs)
    question = chat(temperature=0, max_tokens=20)
    alone = [asked.text(ours, question), asked.text(theirs, question)]
    assert alone[0] != alone[1]
    assert asked.texts((ours, question), (theirs, question)) == alone
    asked.until(lambda: not asked.backend._engine._batches)  # its thread has seen the end
    gone = weakref.ref(asked.backend._versions[theirs].base)
    asked.run(asked.backend.unload(theirs))
    asked.load(version(third, 0))
    assert gone() is None
    assert [base.base_model for base in asked.backend._bases._bases] == [base_model, third]
    asked.run(asked.backend.unload(version(third, 0)))
    assert asked.text(ours, question) == alone[0]


def test_another_base_model_than_the_pinned_one_is_refused(asked: Asked, base_model: str) -> None:
    """A folder of which the files were changed since the lineage's first step."""
    pinned = dataclasses.replace(
        version(base_model, 0), base_revision=fingerprint(Path(base_model))
    )
    asked.load(pinned)
    assert (
        asked.backend._versions[pinned].base is asked.backend._versions[version(base_model, 0)].base
    )
    with pytest.raises(CannotServe, match="is pinned to files:0123"):
        asked.load(dataclasses.replace(pinned, base_revision="files:0123"))


def test_what_wandb_holds_is_not_its_own(asked: Asked, base_model: str) -> None:
    assert asked.backend.serves(version(base_model, 0))
    assert asked.backend.serves(version(base_model, 3, "s3://store/agent/3-1"))
    assert not asked.backend.serves(version(base_model, 3, inference_name="team/agent:step3"))
    assert not asked.backend.serves(version(base_model, 3))


def test_a_bfloat16_model_keeps_its_adapters_in_float32() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(32, 48)).bfloat16()
    overlay = Overlay(network)
    inputs = torch.randn(3, 2, 32).bfloat16()
    down, up = torch.randn(4, 32), torch.randn(4, 48)
    with torch.inference_mode():
        overlay.use([None] * 3)
        base = network(inputs)
        overlay.use([None, Adapter({"0": (down, up)}), None])
        out = network(inputs)
    expected = base[1].float() + inputs[1].float() @ down.t() @ up
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[[0, 2]], base[[0, 2]])
    torch.testing.assert_close(out[1].float(), expected, rtol=0.02, atol=0.1)


def test_a_layer_that_sees_tokens_of_any_row_is_noticed() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(inputs.view(-1, 8)).view(inputs.shape)

    network, inputs = Flat(), torch.randn(2, 3, 8)
    overlay = Overlay(network)
    adapter = Adapter({"layer": (torch.randn(4, 8), torch.randn(4, 8))})
    with torch.inference_mode():
        overlay.use([None, None])
        base = network(inputs)
        assert not overlay.mixes
        overlay.use([adapter, adapter])
        down, up = adapter.layers["layer"]
        torch.testing.assert_close(network(inputs), base + inputs @ down.t() @ up)
        overlay.use([adapter, None])
        with pytest.raises(RuntimeError, match="does not see the rows"):
            network(inputs)
