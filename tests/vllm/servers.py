"""Real vLLM servers, as processes of their own on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from babylon_tasks.child import end_with_parent
from babylon_tasks.local.ports import free_port

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VLLM_TEST_PYTHON", ROOT / ".venv-vllm/bin/python"))
START_SECONDS = 300.0

# For a CPU that others use, too: no compilation, a small cache.
ON_A_CPU = ("--enforce-eager", "--dtype=bfloat16", "--max-model-len=2048")
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all servers are bound to the same core
}


class VllmServer:
    """One server; `kill` and `start` it as often as a test likes, on the same port."""

    def __init__(self, model: str, folder: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"vllm-{self.port}.log"
        self._command = [
            str(PYTHON), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model,
            "--enable-lora", "--host=127.0.0.1", f"--port={self.port}", *ON_A_CPU, *flags,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return at once."""
        env = {**os.environ, **ENVIRONMENT, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, env=env, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip

    def wait_until_up(self) -> None:
        ends_at = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > ends_at:
                raise AssertionError(f"vLLM is not up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def is_up(self) -> bool:
        with suppress(urllib.error.URLError, OSError):
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200)
        return False

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=5).read().decode()
        lines = [line for line in text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def kill(self) -> None:
        """End it with its engine, at once."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def vllm_servers(
    model: str, folder: Path, *flags: str, count: int = 1
) -> Iterator[list[VllmServer]]:
    """Run so many replicas; they come up at the same time."""
    servers = [VllmServer(model, folder, *flags) for _ in range(count)]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_up()
        yield servers
    finally:
        for server in servers:
            server.kill()
