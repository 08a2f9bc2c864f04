"""Checkpoints are whole or not there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointUnreadable, LeaseLost, UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("store", ["folder", "memory://bucket"])
def test_what_was_saved_is_opened_as_a_local_folder(
    store: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "cache"))
    root = str(tmp_path / "store") if store == "folder" else store
    url = checkpoint_files.folder_of(root, "babylon-agent", 3, 17)
    assert url.endswith("/babylon-agent/3-17")
    checkpoint_files.save(source, url, "nonce")
    opened = checkpoint_files.open_local(url)
    assert (opened / "adapter_model.safetensors").read_bytes() == b"weights"
    checkpoint_files.remove(url)
    checkpoint_files.remove(url)
    with pytest.raises(CheckpointUnreadable):
        checkpoint_files.open_local(url)


def test_a_folder_is_never_written_twice(source: Path, tmp_path: Path) -> None:
    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    checkpoint_files.save(source, url, "nonce")
    (source / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="set CHECKPOINT_STORE to another folder"):
        checkpoint_files.save(source, url, "nonce")


def test_a_copy_that_loses_its_lease_ends(source: Path, tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseLost("gone")

    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    with pytest.raises(LeaseLost):
        checkpoint_files.save(source, url, "nonce", lost)
    assert not Path(url).exists()


def test_half_written_is_unreadable(source: Path, tmp_path: Path) -> None:
    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    checkpoint_files.save(source, url, "nonce")
    (Path(url) / "adapter_model.safetensors").write_bytes(b"wei")
    with pytest.raises(CheckpointUnreadable, match="cut short"):
        checkpoint_files.open_local(url)
    (Path(url) / "manifest.json").unlink()
    with pytest.raises(CheckpointUnreadable, match="CHECKPOINT_STORE"):
        checkpoint_files.open_local(url)


def test_another_content_of_the_same_size_is_unreadable(source: Path, tmp_path: Path) -> None:
    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    checkpoint_files.save(source, url, "nonce")
    (Path(url) / "adapter_model.safetensors").write_bytes(b"weightz")
    with pytest.raises(CheckpointUnreadable, match="is damaged: adapter_model"):
        checkpoint_files.open_local(url)


def test_a_store_that_cannot_be_written_names_the_setting(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="CHECKPOINT_STORE"):
        checkpoint_files.save(
            source, checkpoint_files.folder_of(str(tmp_path / "file"), "m", 1, 1), "nonce"
        )


def test_only_the_own_unfinished_folder_is_removed(source: Path, tmp_path: Path) -> None:
    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    checkpoint_files.save(source, url, "theirs")
    assert checkpoint_files.remove_unfinished(url, "ours")
    assert checkpoint_files.open_local(url)
    assert checkpoint_files.remove_unfinished(url, "theirs")
    assert not Path(url).exists()
    assert checkpoint_files.remove_unfinished(url, "theirs")
    (tmp_path / "m" / "2-2").mkdir()
    assert checkpoint_files.remove_unfinished(
        checkpoint_files.folder_of(str(tmp_path), "m", 2, 2), "ours"
    )
    assert list((tmp_path / "m").iterdir()) == []


def test_a_removal_that_was_cut_off_is_ended_by_the_next(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = checkpoint_files.folder_of(str(tmp_path), "m", 1, 1)
    checkpoint_files.save(source, url, "ours")
    real = LocalFileSystem.rm

    def cut_off(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", cut_off)
        with pytest.raises(KeyboardInterrupt):
            checkpoint_files.remove_unfinished(url, "ours")
    assert [file.name for file in Path(url).iterdir()] == ["nonce.txt"]
    assert checkpoint_files.remove_unfinished(url, "theirs")
    assert Path(url).exists()
    assert checkpoint_files.remove_unfinished(url, "ours")
    assert not Path(url).exists()


def test_a_store_that_is_not_mounted_here_says_nothing(tmp_path: Path) -> None:
    url = checkpoint_files.folder_of(str(tmp_path / "elsewhere"), "m", 1, 1)
    assert not checkpoint_files.remove_unfinished(url, "ours")


def test_copies_of_old_steps_go(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that nobody has touched for an hour."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    opened = []
    for step in range(1, 7):
        url = checkpoint_files.folder_of("memory://old-steps", "m", step, step)
        checkpoint_files.save(source, url, "nonce")
        opened.append(checkpoint_files.open_local(url))
        long_ago = time.time() - 3600 + step
        os.utime(opened[-1], (long_ago, long_ago))
    assert [folder.exists() for folder in opened] == [False, False, True, True, True, True]


def test_a_cache_of_somebody_else_is_not_trusted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    url = checkpoint_files.folder_of("memory://not-trusted", "m", 1, 1)
    checkpoint_files.save(source, url, "nonce")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(CheckpointUnreadable, match="belongs to another user"):
        checkpoint_files.open_local(url)
