"""A program in a terminal of its own, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?")


class Terminal:
    """A running program and all that it has written to its terminal."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self.raw = ""

    def wait_for(self, text: str, seconds: float = 40.0, since: int = 0) -> str:
        """Return what was written, words one space apart, once it has this text."""
        deadline = time.monotonic() + seconds
        while text not in self.words(since):
            assert time.monotonic() < deadline, f"no {text!r} in {self.words(since)[-2000:]}"
            self.read()
        return self.words(since)

    def words(self, since: int = 0) -> str:
        """Return the text from this character of `raw` on, without what moves the cursor."""
        return " ".join(_ESCAPES.sub(" ", self.raw[since:]).split())

    def type(self, keys: str) -> None:
        """Press keys; `\\x03` is Ctrl-C."""
        os.write(self._screen, keys.encode())

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        while self.read():
            pass
        return self.process.wait(timeout=20)

    def read(self) -> bool:
        """Read what is there, or comes soon; False once the program has closed its terminal."""
        if not select.select([self._screen], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            chunk = os.read(self._screen, 65536)
        except OSError:  # Linux' way to say that nobody has it open
            return False
        self.raw += chunk.decode(errors="replace")
        return bool(chunk)


@contextmanager
def terminal(
    command: Sequence[str], env: dict[str, str], folder: Path, rows: int = 60
) -> Iterator[Terminal]:
    """Run a program in a terminal of 80 columns; it is killed at the end if it still runs."""
    screen, program = os.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
    process = subprocess.Popen(
        command,
        # pytest-xdist sets LINES and COLUMNS, which programs believe before the terminal itself.
        env={
            "TERM": "xterm-256color",
            **{name: value for name, value in env.items() if name not in ("LINES", "COLUMNS")},
        },
        cwd=folder,
        preexec_fn=lambda: os.login_tty(program),
    )
    os.close(program)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)
