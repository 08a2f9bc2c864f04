"""CUDA_VISIBLE_DEVICES as CUDA reads it, with a driver that lists what real ones list."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from workers.gpu import nvml, slots, visible

FAKE_NVML = Path(__file__).parents[1] / "nvml"
A = "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"
B = "GPU-8f3f0d0a-9d0c-4f8e-8a59-6b1f0a4c1d22"
C = "GPU-8f6b1b7e-53a1-0f7b-b3c5-2f9f7b9c0e11"
PLAIN = [
    [A, "NVIDIA H100 80GB HBM3", 81559, []],
    [B, "NVIDIA H100 80GB HBM3", 81559, []],
    [C, "NVIDIA GeForce RTX 4090", 24564, None],
]
MIG_1 = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
MIG_2 = "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
MIG = [
    [A, "NVIDIA A100-SXM4-40GB", 40960, [MIG_1, None, MIG_2]],
    [B, "NVIDIA A100-SXM4-40GB", None, []],
]

Install = Callable[[Any], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts GPUs into the machine; before that it has no driver."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE_NVML))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml.installed_gpus.cache_clear()
    yield lambda gpus: monkeypatch.setenv("FAKE_GPUS", json.dumps(gpus))
    nvml.installed_gpus.cache_clear()


def test_the_fake_has_the_names_of_the_real_package() -> None:
    spec = importlib.util.spec_from_file_location("fake", FAKE_NVML / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    names = {name for name in vars(fake) if name.lower().startswith("nvml")}
    assert len(names) > 10
    assert names <= set(vars(pynvml))
    assert fake.NVML_DEVICE_MIG_ENABLE == pynvml.NVML_DEVICE_MIG_ENABLE


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
def test_without_a_driver_names_are_taken_as_they_are(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    assert visible.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible.visible_gpus() == ["2", "GPU-1111"]
    assert not [record for record in caplog.records if record.name == nvml.__name__]


def test_without_the_package_there_is_no_gpu(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert nvml.installed_gpus() is None


def test_a_failing_driver_is_told_once(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"error": "Driver Not Loaded"})
    assert visible.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible.visible_gpus() == ["1"]
    assert caplog.text.count("NVIDIA's driver cannot list the GPUs: Driver Not Loaded") == 1


def test_a_driver_that_kills_who_asks_is_no_gpu(
    install: Install,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "pynvml.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert nvml.installed_gpus() is None
    assert "ended with -6" in caplog.text


def test_a_hanging_driver_is_left_alone(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"seconds": 30})
    monkeypatch.setattr(nvml, "_ASK_SECONDS", 0.2)
    assert visible.visible_gpus() == []
    assert "NVIDIA's driver does not answer" in caplog.text


def test_gpus_are_described_for_people(install: Install) -> None:
    install(MIG)
    assert nvml.descriptions() == ["NVIDIA A100-SXM4-40GB, 40960 MiB", "NVIDIA A100-SXM4-40GB"]


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
