"""The vLLM server that the endpoint starts itself: up, ended, up again, and gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from babylon_tasks.settings import Settings
from tests.integration.test_vllm_process import have_ended
from tests.vllm.conftest import Base
from tests.vllm.servers import ENVIRONMENT, ON_A_CPU, PYTHON
from workers.serve.backend import BackendAway, Question
from workers.serve.vllm.process import Served, VllmProcess
from workers.serve.vllm.replica import Replica

ASK = Question(
    "chat", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}, False, True
)


def processes(group: int) -> list[int]:
    """The process and its engine."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


async def up(replica: Replica, seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while not await replica.look():
            await asyncio.sleep(0.2)


def test_it_is_started_ended_and_started_again(
    tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    version = tiny.version(1, tiny.train("large", learning_rate=5e-3), lineage="embedded")
    doomed = tiny.version(2, tiny.train("seed1", learning_rate=5e-3, seed=1), lineage="embedded")
    settings = Settings(vllm_python=str(PYTHON), vllm_arguments=" ".join(ON_A_CPU))
    process = VllmProcess(settings, Served(tiny.model, None, 8, 2), tmp_path / "vllm.log")
    groups: list[int] = []

    async def main() -> None:
        await process.start()
        replica = Replica(process.upstream(), 2)
        try:
            await up(replica)
            assert process._process is not None
            groups.append(process._process.pid)
            assert len(processes(groups[0])) >= 2
            await replica.load(version)
            await replica.load(doomed)
            # The engine alone is killed: vLLM's server ends, and is started again.
            (engine,) = [
                pid
                for pid in processes(groups[0])
                if "EngineCor" in Path(f"/proc/{pid}/comm").read_text()
            ]
            os.kill(engine, signal.SIGKILL)
            async with asyncio.timeout(60):
                while await replica.look():
                    await asyncio.sleep(0.05)
            with pytest.raises(BackendAway):
                await replica.answer(version, ASK)
            assert version.checkpoint is not None
            shutil.rmtree(doomed.checkpoint or "")
            async with asyncio.timeout(60):
                while process._process.pid == groups[0]:
                    await asyncio.sleep(0.2)
            groups.append(process._process.pid)
            await up(replica)
            assert not replica.loaded()
            await replica.load(version)
            assert (await replica.answer(version, ASK))["choices"][0]["token_ids"]
        finally:
            await replica.close()
            await process.stop()

    asyncio.run(main())
    assert len(groups) == 2
    assert have_ended(*[pid for group in groups for pid in processes(group)])
