"""What the embedded engine does not take on: long prompts, large batches, many base models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.unit.embedded import Asked, chat, complete, streamed, version
from tests.unit.tiny import make_tiny_model
from workers.serve.backend import ApiError, CannotServe, Version
from workers.serve.embedded import backend, prompt, request


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return version(make_tiny_model(tmp_path_factory.mktemp("served")), 0)


@pytest.fixture
def asked(base: Version) -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        asked = Asked(runner)
        asked.load(base)
        yield asked
        asked.run(asked.backend.close())


def refused(asked: Asked, base: Version, question: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        asked.answer(base, question)
    assert raised.value.status == 400
    return raised.value


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_prompt_beyond_the_model_is_refused_before_it_is_made_tokens(
    asked: Asked, base: Version, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text = "rise " * 1_500_000
    loaded = asked.backend._versions[base].base
    seen: list[object] = []
    monkeypatch.setattr(loaded.chat, "encode", seen.append)
    monkeypatch.setattr(loaded.chat, "tokenizer", seen.append)
    error = refused(asked, base, chat(text) if kind == "chat" else complete(text))
    assert error.code == "context_length_exceeded"
    assert not seen


def test_tokenizing_keeps_nobody_else_from_a_thread(
    asked: Asked, base: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, names and files are read in the event loop's own threads."""
    others_done = threading.Event()
    tokens = prompt.prompt_tokens

    def slow(*arguments: Any) -> list[int]:
        assert others_done.wait(20)
        return tokens(*arguments)

    monkeypatch.setattr(backend, "prompt_tokens", slow)

    async def ask() -> None:
        asking = [asyncio.create_task(asked.backend.answer(base, chat())) for _ in range(40)]
        await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.to_thread(others_done.set), 10)
        await asyncio.gather(*asking)

    asked.run(ask())


def test_more_than_memory_can_hold_is_refused(
    asked: Asked, base: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked.backend._versions[base].base, "cache_tokens", 150)
    assert refused(asked, base, chat(n=16)).param == "n"
    assert refused(asked, base, chat(max_tokens=200)).param == "max_tokens"
    assert asked.answer(base, chat(n=2))["choices"]


def test_base_models_that_nobody_asks_make_room(
    asked: Asked, base: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [version(make_tiny_model(tmp_path / str(n), seed=n), 0) for n in range(3)]
    monkeypatch.setattr(backend, "_MOST_BASES", 2)
    asked.load(models[0])
    with pytest.raises(CannotServe, match="are used"):
        asked.load(models[1])
    asked.text(base, chat())
    monkeypatch.setattr(backend, "_IDLE_SECONDS", 0.0)
    asked.load(models[1])
    assert set(asked.backend.loaded()) == {base, models[1]}
    assert len(asked.backend._bases._bases) == 2
    asked.load(models[2])
    assert set(asked.backend.loaded()) == {models[1], models[2]}


def test_a_stream_that_shows_nothing_yet_gives_signs_of_life(
    asked: Asked, base: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that thinks first shows its text at the end."""
    monkeypatch.setattr(asked.backend._versions[base].base.chat, "lead", "<think>")
    question = chat(stream=True, max_tokens=12, temperature=0)
    quiet = asked.chunks(base, question)
    monkeypatch.setattr(request, "_QUIET_SECONDS", 0.0)
    lively = asked.chunks(base, question)
    assert len(quiet) < len(lively)
    assert streamed(quiet) == streamed(lively)
    ids = [[t for chunk in chunks for c in chunk["choices"] for t in c.get("token_ids", [])]
           for chunks in (quiet, lively)]  # fmt: skip
    assert ids[0] == ids[1]
