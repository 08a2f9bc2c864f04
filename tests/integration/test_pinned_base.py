"""The endpoint loads a hub's base model at the lineage's revision, whatever `main` is now."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.unit.tiny import make_tiny_model

pytest.importorskip("torch")
pytest.importorskip("starlette")

PROGRAM = """
import asyncio, sys
from workers.serve.backend import Question, Version
from workers.serve.embedded.backend import EmbeddedBackend

async def ask():
    backend, version = EmbeddedBackend(), Version("m", 0, None, "org/tiny", sys.argv[1])
    await backend.load(version)
    body = {"messages": [{"role": "user", "content": "YES or NO?"}], "max_tokens": 4}
    print(await backend.answer(version, Question("chat", body, stream=False, captured=False)))
    await backend.close()

asyncio.run(ask())
"""


@pytest.mark.slow  # a process that imports torch and transformers
def test_the_server_loads_the_pinned_revision(tmp_path: Path) -> None:
    with closing(HubServer()) as hub:
        old = hub.push("org/tiny", Path(make_tiny_model(tmp_path / "old", seed=1)))
        hub.push("org/tiny", Path(make_tiny_model(tmp_path / "new", seed=2)))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, old],
            env={
                **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "hub"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        asked = [path for path in hub.requests if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in asked)
    assert [path for path in asked if f"/resolve/{old}/" not in path] == []
