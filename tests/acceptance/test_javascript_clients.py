"""The JavaScript clients of agents: OpenAI's, and Vercel's as the app uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.missing import missing

pytest.importorskip("uvicorn")

from babylon_tasks.records.api_keys import ApiKey, hash_of, new_key
from tests.serving_fakes import FakeRouter, KeysInMemory, running_edge, whole
from workers.serve.backend import ApiError, Question, Version

PACKAGES = ("openai@6", "ai@5", "@ai-sdk/openai@2", "@ai-sdk/groq@2")  # as in the app
PROGRAM = Path(__file__).parent / "javascript/clients.mjs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which node finds the clients."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("no node and npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *PACKAGES]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=110)
    shutil.copy(PROGRAM, tmp_path)
    return tmp_path


class JsonRouter(FakeRouter):
    """Of the model `json` the answer is a JSON object; the base model has no tools."""

    def models(self) -> list[str]:
        return [*super().models(), "json"]

    def resolve(self, model: str, agent: str | None) -> Version:
        version = super().resolve(model, agent)
        self.script = self.refuse_tools if version.step == 0 else None
        if model == "json":
            self.script = self.say_json
        return version

    async def say_json(self, question: Question) -> AsyncIterator[dict[str, Any]]:
        assert question.body["response_format"] == {"type": "json_object"}
        yield whole(question, ['{"side":', ' "YES"}'])

    async def refuse_tools(self, question: Question) -> AsyncIterator[dict[str, Any]]:
        assert question.body["tools"][0]["function"]["name"] == "buy"
        raise ApiError(400, "this engine has no tools", param="tools")
        yield {}


@pytest.mark.slow
def test_javascript_clients_get_their_answers(folder: Path) -> None:
    key = new_key()
    router = JsonRouter()
    keys = KeysInMemory([ApiKey("app", hash_of(key.encode()))])
    with running_edge(router, keys) as edge:
        done = subprocess.run(
            ["node", "clients.mjs"],
            cwd=folder,
            env={**os.environ, "BASE_URL": f"{edge.url}/v1", "API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["openai"] == {
        "content": "YES or NO",
        "model": "agent@12",
        "streamed": "YES or NO",
        "total": 6,
        "text": "YES or NO",
        "models": router.models(),
        "refused": {"status": 400, "param": "functions"},
        "stranger": {"status": 401, "code": "invalid_api_key"},
    }
    assert answers["app"] == {
        "content": "YES or NO",
        "total": 6,
        "reason": "stop",
        "streamed": "YES or NO",
        "object": {"side": "YES"},
        "refused": {"status": 400, "message": "this engine has no tools"},
    }
    assert answers["vercelOpenai"] == {"content": "YES or NO", "model": "agent@12"}
    asked = router.asked[3][1].body  # after the three questions of OpenAI's client
    assert asked["stop"] == ["END"]
    assert (asked["max_tokens"], asked["temperature"]) == (8192, 0.7)
