"""The comparison of two adapters, with tensors made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from babylon_tasks.errors import CheckpointUnreadable
from workers.trainer.torch.difference import WeightDifference, compare_adapters


def adapter(folder: Path, name: str = "a", **tensors: list[float]) -> Path:
    folder = folder / name
    folder.mkdir()
    weights = {key: torch.tensor(values) for key, values in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_equal(tmp_path: Path) -> None:
    a, b = (adapter(tmp_path, name, x=[1.0, 2.0], y=[0.0]) for name in "ab")
    assert compare_adapters(a, b) == WeightDifference(2, 0, 0.0, 0.0, None)


def test_by_hand(tmp_path: Path) -> None:
    """x differs by 0.5 of at most 4: an eighth. y by 0.25 of at most 0.25: all of it."""
    a = adapter(tmp_path, "a", x=[1.0, -4.0], y=[0.0, 0.125], z=[7.0])
    b = adapter(tmp_path, "b", x=[1.5, -4.0], y=[0.25, 0.125], z=[7.0])
    assert compare_adapters(a, b) == WeightDifference(3, 2, 0.5, 1.0, "y")


@pytest.mark.parametrize("other", [{"x": [1.0, 2.0], "y": [1.0]}, {"x": [1.0, 2.0, 3.0]}, {}])
def test_other_layers_or_shapes(tmp_path: Path, other: dict[str, list[float]]) -> None:
    a, b = adapter(tmp_path, "a", x=[1.0, 2.0]), adapter(tmp_path, "b", **other)
    with pytest.raises(CheckpointUnreadable, match=r"layers|cannot compare"):
        compare_adapters(a, b)


def test_a_file_is_missing_or_damaged(tmp_path: Path) -> None:
    a, b = adapter(tmp_path, "a", x=[1.0]), tmp_path / "b"
    with pytest.raises(CheckpointUnreadable, match=r"cannot compare the adapters of .*/a and "):
        compare_adapters(a, b)
    b.mkdir()
    (b / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(CheckpointUnreadable, match="cannot compare"):
        compare_adapters(a, b)
