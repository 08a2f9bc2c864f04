"""The fingerprint of a folder's model: which changes it notices, and which it must not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.trainer.torch.fingerprint import fingerprint

MB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small file of each kind, and weights of 40 MB, mostly holes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "merges.txt"):
        (folder / name).write_text(name)
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(40 * MB)
    return folder


def write_at(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text("config.JSON"),
        lambda folder: (folder / "merges.txt").write_text("merges.TXT"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        lambda folder: (folder / "tokenizer.json").rename(folder / "vocab.json"),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        # A header, a matrix that begins at 10 MB and is 20 MB long, the last weight of all.
        lambda folder: write_at(folder / "model.safetensors", 0, b"x"),
        lambda folder: write_at(folder / "model.safetensors", 10 * MB, b"x" * 20 * MB),
        lambda folder: write_at(folder / "model.safetensors", 40 * MB - 1, b"x"),
        lambda folder: write_at(folder / "model.safetensors", 40 * MB, b"\0"),
    ],
)
def test_another_model_has_another_fingerprint(
    folder: Path, change: Callable[[Path], object]
) -> None:
    before = fingerprint(folder)
    change(folder)
    assert fingerprint(folder) != before


def test_a_copy_has_the_same_and_so_has_what_changes_no_step(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "README.md").write_text("about it")
    (copy / ".cache").mkdir()
    assert fingerprint(copy) == before
    assert before.startswith("files:")
    assert len(before) == len("files:") + 40


def test_thirty_gigabytes_take_about_a_second(tmp_path: Path) -> None:
    for number in range(6):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as weights:
            weights.truncate(5 * 2**30)
    started = time.process_time()  # whatever else runs
    fingerprint(tmp_path)
    assert time.process_time() - started < 5  # 0.2 s on a machine at rest
