"""CUDA_VISIBLE_DEVICES as CUDA reads it, with an `nvidia-smi` that prints what real ones print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.gpu import slots, visible

A = "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"
B = "GPU-8f3f0d0a-9d0c-4f8e-8a59-6b1f0a4c1d22"
C = "GPU-8f6b1b7e-53a1-0f7b-b3c5-2f9f7b9c0e11"
PLAIN = (
    f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\n"
    f"GPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})\n"
    f"GPU 2: NVIDIA GeForce RTX 4090 (UUID: {C})\n"
)
MIG_1 = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
MIG_2 = "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
MIG = (
    f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})\n"
    f"  MIG 3g.20gb     Device  0: (UUID: {MIG_1})\n"
    f"  MIG 1c.3g.20gb  Device  1: (UUID: {MIG_2})\n"
    f"GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})\n"
)
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.\n"
)

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts an `nvidia-smi` first on PATH; before that there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible.installed_gpus.cache_clear()

    def write(output: str, code: int = 0, seconds: float = 0) -> None:
        (tmp_path / "output").write_text(output)
        script = folder / "nvidia-smi"
        script.write_text(
            f'#!/bin/sh\n[ "$*" = -L ] || exit 2\n/bin/sleep {seconds}\n'
            f"/bin/cat {tmp_path / 'output'}\nexit {code}\n"
        )
        script.chmod(0o755)

    yield write
    visible.installed_gpus.cache_clear()


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (None, [A, B, C]),
        ("0,1,2", [A, B, C]),
        ("2, 0", [C, A]),  # in the order of the list
        (C, [C]),
        ("GPU-5c", [A]),  # cut short
        (f"1,{A}", [B, A]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [A]),  # what follows is hidden
        ("1,7,0", [B]),  # no such number
        ("0,GPU-ffff,1", [A]),
        ("GPU-8f", []),  # two begin so
        ("0,,1", [A]),
        ("NoDevFiles", []),
        ("0,0", []),
        (f"0,{A}", []),  # twice by two names
    ],
)
def test_it_is_read_as_cuda_reads_it(
    install: Install, monkeypatch: pytest.MonkeyPatch, named: str | None, shown: list[str]
) -> None:
    install(PLAIN)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible.visible_gpus() == shown
    assert slots.count() == max(1, len(shown))


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (None, [MIG_1, MIG_2, B]),
        ("0", [MIG_1, MIG_2]),
        (A, [MIG_1, MIG_2]),
        (f"{MIG_2},1", [MIG_2, B]),
        ("MIG-c6", [MIG_1]),
        ("MIG-c", []),
        (f"{MIG_1},0", []),
    ],
)
def test_each_mig_instance_is_a_slot(
    install: Install, monkeypatch: pytest.MonkeyPatch, named: str | None, shown: list[str]
) -> None:
    install(MIG)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible.visible_gpus() == shown


@pytest.mark.parametrize("named", ["2,GPU-1111,-1,3", "2,GPU-1111,x"])
def test_without_nvidia_smi_names_are_taken_as_they_are(
    install: Install, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    assert visible.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible.visible_gpus() == ["2", "GPU-1111"]


def test_a_failing_nvidia_smi_is_told_once(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(NO_DRIVER, code=9)
    assert visible.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible.visible_gpus() == ["1"]
    assert caplog.text.count("nvidia-smi -L ends with 9: NVIDIA-SMI has failed") == 1


def test_a_hanging_nvidia_smi_is_left_alone(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(PLAIN, seconds=30)
    monkeypatch.setattr(visible, "_SMI_SECONDS", 0.2)
    assert visible.visible_gpus() == []
    assert "nvidia-smi does not answer" in caplog.text


def test_what_hides_gpus_is_told(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(PLAIN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-ffff")
    visible.visible_gpus()
    assert "'GPU-ffff' names no GPU" in caplog.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,1")
    visible.visible_gpus()
    assert "names a GPU twice" in caplog.text


def test_two_names_of_one_gpu_meet_at_one_lock(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(PLAIN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    by_number = slots.make_trainer(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6")
    by_uuid = slots.make_trainer(0)
    assert by_number._options.gpus == by_uuid._options.gpus == [C]


def test_a_pool_process_takes_its_own_gpu_first(install: Install) -> None:
    install(PLAIN)
    assert [slots.make_trainer(slot)._options.gpus for slot in range(3)] == [
        [A, B, C],
        [B, C, A],
        [C, A, B],
    ]
