"""The vLLM server that the endpoint starts itself, with a stand-in of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from workers.serve.backend import Version
from workers.serve.vllm import process as process_module
from workers.serve.vllm.process import Served, VllmProcess
from workers.serve.vllm.replica import Replica

ROOT = Path(__file__).parents[2]
SERVED = Served("/models/base", "a" * 40, lora_rank=12, adapters=3)
BASE = Version("agent", 0, None, "/models/base")


def python(folder: Path, code: str = "", name: str = "python") -> str:
    """A "Python" that has vLLM: it tells of each start, runs `code`, and then the stand-in."""
    script = folder / name
    script.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(f"""
            import json, os, signal, sys, time
            sys.path.insert(0, {str(ROOT)!r})
            sys.path.append({str(next(p for p in sys.path if p.endswith("site-packages")))!r})
            with open({str(folder / "starts")!r}, "a") as file:
                told = {{"pid": os.getpid(), "argv": sys.argv[1:], "env": dict(os.environ)}}
                file.write(json.dumps(told) + chr(10))
        """)
        + textwrap.dedent(code)
        + "\nfrom tests.vllm_server import main\nmain()\n"
    )
    script.chmod(0o755)
    return str(script)


def starts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "starts").read_text().splitlines()]


def settings(vllm_python: str, **more: Any) -> Settings:
    return Settings(vllm_python=vllm_python, **more)


def run(process: VllmProcess, do: Callable[[Replica], Awaitable[None]]) -> None:
    async def main() -> None:
        replica = Replica(process.upstream(), 3)
        await process.start()
        try:
            await up(replica)
            await do(replica)
        finally:
            await replica.close()
            await process.stop()

    asyncio.run(main())


async def up(replica: Replica) -> None:
    async with asyncio.timeout(30):
        while not await replica.look():
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def have_ended(*pids: int) -> bool:
    ends_at = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < ends_at:
        time.sleep(0.01)
    return not any(map(is_alive, pids))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 5.0)


def test_it_starts_answers_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-wandb")
    monkeypatch.setenv("VLLM_API_KEY", "a-key-of-vllm")
    monkeypatch.setenv("HF_HOME", "/hub")
    wanted = settings(python(tmp_path), vllm_arguments="--max-model-len 4096 --max-loras='5'")
    process = VllmProcess(wanted, SERVED, tmp_path / "logs" / "vllm.log")

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        (socket,) = (Path(a) for a in starts(tmp_path)[0]["argv"] if a.endswith(".sock"))
        assert stat.S_ISSOCK(socket.stat().st_mode)
        assert socket.parent.stat().st_mode & 0o077 == 0  # nobody else gets to it

    run(process, do)
    (start,) = starts(tmp_path)
    argv, env = start["argv"], start["env"]
    assert argv[:3] == ["-P", "-m", "vllm.entrypoints.openai.api_server"]
    assert argv[argv.index("--revision") + 1] == "a" * 40
    assert {"--max-lora-rank=16", "--max-loras=3", "--max-cpu-loras=6"} < set(argv)
    assert argv[-3:] == ["--max-model-len", "4096", "--max-loras=5"]
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert env["HF_HOME"] == "/hub"
    assert not {"WANDB_API_KEY", "VLLM_API_KEY", "DATABASE_URL"} & set(env)
    assert not is_alive(start["pid"])


def test_one_that_ends_is_started_again(tmp_path: Path) -> None:
    process = VllmProcess(settings(python(tmp_path)), SERVED, tmp_path / "vllm.log")

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
        while len(starts(tmp_path)) < 2:
            await asyncio.sleep(0.005)
        await up(replica)
        await replica.load(BASE)

    run(process, do)
    assert len(starts(tmp_path)) == 2


def test_what_does_not_come_up_is_tried_less_and_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = python(tmp_path, "print('no such model'); sys.exit(3)")
    process = VllmProcess(settings(broken), SERVED, tmp_path / "vllm.log")

    async def main() -> None:
        await process.start()
        while len([r for r in caplog.records if "ended with code 3" in r.getMessage()]) < 3:
            await asyncio.sleep(0.01)
        await process.stop()

    asyncio.run(main())
    assert (tmp_path / "vllm.log").read_text().startswith("no such model\n" * 3)
    pauses = [r.args[1] for r in caplog.records if isinstance(r.args, tuple)]
    assert pauses[:3] == [0.01, 0.02, 0.04]


def test_one_that_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 0.2)
    stubborn = """
        if os.fork() == 0:
            with open(__file__ + ".child", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)
        import uvicorn
        uvicorn.Server.handle_exit = lambda *args: None
    """
    program = python(tmp_path, stubborn)
    process = VllmProcess(settings(program), SERVED, tmp_path / "vllm.log")

    async def do(replica: Replica) -> None:
        await replica.load(BASE)

    run(process, do)
    pids = [starts(tmp_path)[0]["pid"], int(Path(program + ".child").read_text())]
    assert have_ended(*pids)


def test_it_ends_with_the_endpoint(tmp_path: Path) -> None:
    """Even where the endpoint is killed, and can end nothing."""
    program = python(tmp_path)
    code = f"""
        import asyncio, os, signal
        from pathlib import Path
        from tests.integration.test_vllm_process import SERVED, run, settings
        from workers.serve.vllm.process import VllmProcess

        async def do(replica):
            os.kill(os.getpid(), signal.SIGKILL)

        run(VllmProcess(settings({program!r}), SERVED, Path({str(tmp_path)!r}) / "log"), do)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert have_ended(starts(tmp_path)[0]["pid"])


@pytest.mark.parametrize(
    ("change", "served", "told"),
    [
        ({"vllm_python": "/nowhere/python"}, SERVED, "VLLM_PYTHON=/nowhere/python is no program"),
        ({"vllm_arguments": "--model 'x"}, SERVED, "VLLM_ARGUMENTS cannot be read: No closing"),
        ({}, Served("b", None, 513, 3), "LORA_RANK is larger"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, change: dict[str, str], served: Served, told: str
) -> None:
    wanted = settings(**{"vllm_python": sys.executable, **change})
    with pytest.raises(UserError, match=told):
        VllmProcess(wanted, served, tmp_path / "log")
