"""A step's weights outside the store: a plain adapter, merged weights, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylon_tasks.checkpoints import export
from babylon_tasks.errors import UserError
from tests.unit.tiny import make_request, make_tiny_model, two_sided
from workers.trainer.torch.merge import merge_adapter
from workers.trainer.torch.trainer import TorchTrainer

pytestmark = pytest.mark.filterwarnings("ignore:cov")

TOKENS = torch.arange(40)[None] * 7 % 300


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A checkpoint of two real steps, and the logits of the trainer's own model after them."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = TorchTrainer("cpu-0")
    parent = None
    for name in ("first", "second"):
        request = make_request(
            folder, base_model, two_sided(), parent, name, learning_rate=0.05, kl_penalty=0
        )
        trainer.step(request, lambda progress: None)
        parent = request.output_dir
    assert parent
    assert trainer._model is not None
    return Path(parent), logits(trainer._model.adapted)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return made


def base_logits(base_model: str) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(base_model))


def test_the_adapter_says_what_the_trained_model_says(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint, wanted = trained
    target = tmp_path / "new" / "adapter"
    with export.new_folder(target) as draft:
        export.copy_adapter(checkpoint, draft)
    assert sorted(file.name for file in target.iterdir()) == sorted(export.ADAPTER_FILES)
    base = AutoModelForCausalLM.from_pretrained(base_model)
    exported = logits(PeftModel.from_pretrained(base, str(target)))
    torch.testing.assert_close(exported, wanted, rtol=0, atol=1e-5)
    assert (exported - base_logits(base_model)).abs().max() > 0.1


def test_merged_weights_say_what_base_and_adapter_say(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint, wanted = trained
    with export.new_folder(tmp_path / "merged") as draft:
        merge_adapter(base_model, checkpoint, draft)
    modes = {file.stat().st_mode for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "a server of another user may read all of it, or nothing"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-4)
    ours, theirs = (
        AutoTokenizer.from_pretrained(f) for f in (str(tmp_path / "merged"), base_model)
    )
    talk = [{"role": "user", "content": "Will it rise?"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)


def test_merged_weights_keep_the_base_models_type(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base_model).to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(half)
    with export.new_folder(tmp_path / "merged") as draft:
        merge_adapter(str(half), trained[0], draft)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    off = (logits(merged).float() - trained[1]).abs().max()
    assert off < 0.1 * (base_logits(base_model) - trained[1]).abs().max()


def test_a_base_model_that_is_not_there(trained: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/no/such/model cannot be loaded") as caught:
        merge_adapter("/no/such/model", trained[0], tmp_path)
    assert "\n" not in str(caught.value)


def test_another_base_model_than_the_pinned_one_is_not_merged(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is pinned to files:0123"):
        merge_adapter(base_model, trained[0], tmp_path, "files:0123")


def test_a_base_model_that_transformers_refuses_to_save(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    """Some were published with defaults that contradict each other."""
    shutil.copytree(base_model, tmp_path / "base")
    contradiction = '{"temperature": 0.5, "do_sample": false}'
    (tmp_path / "base" / "generation_config.json").write_text(contradiction)
    with pytest.raises(UserError, match=r"cannot be saved: .*`temperature`") as caught:
        merge_adapter(str(tmp_path / "base"), trained[0], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["a layer less", "another width", "cut short"])
def test_an_adapter_of_another_model_is_refused(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path, harm: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained[0], adapter)
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    if harm == "a layer less":
        del weights[next(iter(weights))]
    elif harm == "another width":
        weights = {name: torch.cat([w, w], dim=-1) for name, w in weights.items()}
    save_file(weights, file)
    if harm == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="does not fit the base model") as caught:
        merge_adapter(base_model, adapter, tmp_path)
    assert "\n" not in str(caught.value)


def write(target: Path, text: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    with export.new_folder(target) as draft:
        (draft / "weights").write_text(text)
        meanwhile()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A write beyond so many bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_by_the_file_that_is_written(tmp_path: Path) -> None:
    checkpoint, target = tmp_path / "checkpoint", tmp_path / "new"
    checkpoint.mkdir()
    for file in export.ADAPTER_FILES:
        (checkpoint / file).write_bytes(b"x" * 10_000)
    with files_up_to(5_000), pytest.raises(UserError) as caught, export.new_folder(target) as draft:
        export.copy_adapter(checkpoint, draft)
    assert str(checkpoint) not in str(caught.value)
    assert f"({draft}" in str(caught.value)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint"]


def test_no_folder_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for taken in (tmp_path / "file", tmp_path / "full", tmp_path, Path("/")):
        with pytest.raises(UserError, match="is not an empty folder"), export.new_folder(taken):
            raise AssertionError("refused before anything is made")
    with pytest.raises(UserError, match="cannot export to"):
        write(tmp_path / "file" / "below", "x")
    write(tmp_path / "empty", "new")
    assert (tmp_path / "empty" / "weights").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_two_exports_at_once_leave_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "one"
    with pytest.raises(UserError, match="cannot export to"):
        write(target, "first", lambda: write(target, "second"))
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    assert (target / "weights").read_text() == "second"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_export_that_ends_early_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(error):
        write(tmp_path / "folder", "half", stop)
    assert list(tmp_path.iterdir()) == []


def write_weights(base_model: str, checkpoint: Path, target: Path, merged: bool) -> None:
    with export.new_folder(target) as draft:
        if merged:
            merge_adapter(base_model, checkpoint, draft)
        else:
            export.copy_adapter(checkpoint, draft)


@pytest.mark.parametrize("how", ["adapter", "merged"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    base_model: str, trained: tuple[Path, torch.Tensor], tmp_path: Path, how: str
) -> None:
    target = tmp_path / "folder"
    checkpoint = trained[0]
    with files_up_to(100_000), pytest.raises(UserError) as caught:
        write_weights(base_model, checkpoint, target, merged=how == "merged")
    assert str(caught.value).startswith(f"cannot export to {target}: ")
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 1 has no weights to export"):
        export.require_adapter(tmp_path, "step 1")
    (tmp_path / "remote.json").write_text("{}")
    with pytest.raises(UserError, match="step 1 was trained by W&B and its weights are there"):
        export.require_adapter(tmp_path, "step 1")
