"""A vLLM server that the endpoint starts itself, in an environment of vLLM's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import UserError
from babylon_tasks.scratch import own_folder
from babylon_tasks.settings import Settings
from workers.serve.upstream import Upstream
from workers.serve.vllm.adapters import RANKS

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0  # also how long it must have run to count as well again
_GRACE_SECONDS = 15.0  # to end by itself
_MOST_SOCKET_BYTES = 107  # of a Unix socket's path


@dataclass(frozen=True, slots=True)
class Served:
    """What the server is for: a base model, at a revision of the hub if given, and adapters."""

    base_model: str
    base_revision: str | None
    lora_rank: int
    adapters: int

    def arguments(self) -> list[str]:
        """Return vLLM's flags.

        Raises:
            UserError: vLLM takes no adapter of this rank.
        """
        rank = next((size for size in RANKS if size >= self.lora_rank), None)
        if rank is None:
            raise UserError(f"vLLM takes adapters up to rank {RANKS[-1]}: LORA_RANK is larger")
        arguments = ["--model", self.base_model]
        if self.base_revision and not self.base_revision.startswith("files:"):
            arguments += ["--revision", self.base_revision]
        return [
            *arguments,
            "--enable-lora",
            f"--max-loras={self.adapters}",
            # An adapter whose name was taken away stays until others need its room.
            f"--max-cpu-loras={2 * self.adapters}",
            f"--max-lora-rank={rank}",
            "--generation-config=vllm",
            "--logprobs-mode=raw_logprobs",  # as the trainer computes them
            "--enable-prefix-caching",
            "--disable-uvicorn-access-log",
        ]


class VllmProcess:
    """Runs one server, and starts it again when it ends.

    It listens on a Unix socket in a folder of this user, since vLLM's key does not guard all of its
    paths (`/adapters` loads one without it). It ends with this process.

    Args:
        settings: VLLM_PYTHON and VLLM_ARGUMENTS, which may change each flag.
        served: What it is to have.
        log_file: Of its output; it begins anew here, and goes on after a restart.

    Raises:
        UserError: VLLM_PYTHON is no program, VLLM_ARGUMENTS cannot be read, TMPDIR is too long, or
            the rank too large.
    """

    def __init__(self, settings: Settings, served: Served, log_file: Path) -> None:
        python = settings.vllm_python or ""
        if not os.access(python, os.X_OK):
            raise UserError(f"VLLM_PYTHON={python} is no program: name the Python that has vLLM")
        try:
            more = shlex.split(settings.vllm_arguments)
        except ValueError as error:
            raise UserError(f"VLLM_ARGUMENTS cannot be read: {error}") from None
        self._socket = own_folder() / f"vllm-{os.getpid()}.sock"
        if len(os.fsencode(self._socket)) > _MOST_SOCKET_BYTES:
            raise UserError(
                f"{self._socket} is too long for a socket: set TMPDIR to another folder"
            )
        module = ("-P", "-m", "vllm.entrypoints.openai.api_server")
        self._command = [
            python, *module, "--uds", str(self._socket), *served.arguments(), *more,
        ]  # fmt: skip
        self._log_file = log_file
        self._answer_seconds = settings.serve_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    def upstream(self) -> Upstream:
        """Return the way to ask the server."""
        return Upstream("http://vllm", None, "vllm", self._answer_seconds, socket=str(self._socket))

    async def start(self) -> None:
        """Start the server, and return at once: it is up when a look at it says so."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_file.write_bytes(b"")
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the server: it is asked to, and after a grace it is killed."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        process = self._process
        if process is not None:
            if process.returncode is None:
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
            _kill_group(process.pid)
            await process.wait()
        self._socket.unlink(missing_ok=True)

    async def _watch(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started_at = time.monotonic()
            try:
                self._process = process = await self._spawn()
                code = await process.wait()
                _kill_group(process.pid)  # its engine is a process of its own
            except OSError as error:
                code = error.errno or 1
            if time.monotonic() - started_at >= _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.warning(
                "vLLM ended with code %d, starting it again in %.0f s: see %s",
                code, pause, self._log_file,
            )  # fmt: skip
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._socket.unlink(missing_ok=True)
        with self._log_file.open("ab") as file:
            return await asyncio.create_subprocess_exec(
                *self._command,
                env=_environment(os.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without our settings: keys among them, and what vLLM would read."""
    settings = {name.upper() for name in Settings.model_fields}
    env = {name: value for name, value in ours.items() if name.upper() not in settings}
    return {**env, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
