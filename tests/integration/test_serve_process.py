"""The model server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")

ROOT = Path(__file__).parents[2]


def test_the_port_is_printed_before_the_first_request() -> None:
    program = (
        "from workers.serve.app import listen, make_app\n"
        "listen(make_app(lambda name: None, list), '127.0.0.1', 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.removeprefix("listening on ").strip()
        with urllib.request.urlopen(f"{url}/healthz", timeout=20) as answer:
            assert answer.read() == b'{"status":"ok"}'
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.stdout.close()
