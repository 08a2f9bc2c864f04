"""The embedded engine: many requests in one batch, each answered as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from tests.unit.embedded import Asked, chat, complete, make_checkpoint, said, streamed, version
from tests.unit.tiny import make_tiny_model
from workers.serve.backend import ApiError, BackendAway, Version
from workers.serve.embedded.base import Base

LONG = 3000  # tokens that no test waits for


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def versions(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """The base model and three steps that say different things."""
    folder = tmp_path_factory.mktemp("store")
    steps = [version(base_model, n, make_checkpoint(base_model, folder, n)) for n in (1, 2, 3)]
    return [version(base_model, 0), *steps]


@pytest.fixture(scope="module")
def asked(versions: list[Version]) -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        asked = Asked(runner)
        asked.load(*versions)
        yield asked
        asked.run(asked.backend.close())


@pytest.fixture
def sizes(asked: Asked, versions: list[Version], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each forward pass of one token."""
    base, passes = base_of(asked, versions[0]), []
    forward = base.forward

    def counted(tokens: torch.Tensor, mask: Any, starts: Any, cache: Any) -> torch.Tensor:
        if tokens.shape[1] == 1:
            passes.append(len(starts))
        return forward(tokens, mask, starts, cache)

    monkeypatch.setattr(base, "forward", counted)
    return passes


def base_of(asked: Asked, of: Version) -> Base:
    return asked.backend._versions[of].base


QUESTIONS = [
    "YES or NO?",
    "rise " * 40,
    "The momentum is weak.",
    "HOLD",
    "Say NO. " * 9,
    "?",
    "buy",
    "x",
]


def test_each_version_says_its_own(asked: Asked, versions: list[Version]) -> None:
    assert len({asked.text(each, chat(temperature=0)) for each in versions}) == len(versions)


def test_answers_are_the_same_alone_and_in_a_batch(
    asked: Asked, versions: list[Version], sizes: list[int]
) -> None:
    """All versions at once: prompts of other lengths, answers of other lengths, drawn and not."""
    work = [
        (each, chat(text, max_tokens=4 + 2 * n, temperature=0 if n % 2 else 1.2, seed=n, top_p=0.9))
        for n, text in enumerate(QUESTIONS)
        for each in versions
    ]
    alone = [asked.text(*each) for each in work]
    assert max(sizes) == 1
    assert asked.texts(*work) == alone
    assert max(sizes) > 8
    assert asked.texts(*reversed(work)) == alone[::-1]


def test_the_adapters_are_those_of_peft(asked: Asked, versions: list[Version]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(versions[0].base_model)
    tokens = tokenizer.encode("Will the market rise or fall?", add_special_tokens=False)
    for each in versions[1:]:
        network = AutoModelForCausalLM.from_pretrained(each.base_model)
        adapted = PeftModel.from_pretrained(network, str(each.checkpoint)).eval()
        with torch.inference_mode():
            logits = adapted(torch.tensor([tokens])).logits[0].log_softmax(-1)
        values = [float(logits[n, token]) for n, token in enumerate(tokens[1:])]
        base, adapter = asked.backend._versions[each]
        ours = asked.backend._engine.run(partial(base.logprobs, tokens, adapter))
        assert ours.result(30) == pytest.approx(values, abs=1e-4)


def test_requests_join_and_leave_a_running_batch(
    asked: Asked, versions: list[Version], sizes: list[int]
) -> None:
    _, one, two, _ = versions
    long = chat("rise " * 30, temperature=0, max_tokens=60, stream=True)
    short = [chat(text, temperature=0, max_tokens=6) for text in QUESTIONS[:3]]
    alone = streamed(asked.chunks(one, long))
    alone_short = [asked.text(two, each) for each in short]
    sizes.clear()

    async def overlap() -> tuple[str, list[str]]:
        chunks, others = [], []
        async for chunk in asked.backend.stream(one, long):
            chunks.append(chunk)
            if len(chunks) in (3, 12, 20):
                answer = asked.backend.answer(two, short[len(others)])
                others.append(asyncio.create_task(answer))
        assert all(other.done() for other in others)
        return streamed(chunks), [said(await other) for other in others]

    assert asked.run(overlap()) == (alone, alone_short)
    together = [n for n, size in enumerate(sizes) if size > 1]
    assert together
    assert sizes[0] == 1
    assert sizes[-1] == 1


def test_a_seed_repeats_an_answer_and_another_gives_another(
    asked: Asked, versions: list[Version]
) -> None:
    texts = [asked.text(versions[0], chat(seed=seed, temperature=1.5)) for seed in (1, 1, 2, -3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    unseeded = {asked.text(versions[0], chat(temperature=1.5)) for _ in range(4)}
    assert len(unseeded) > 1


def test_the_default_is_to_draw_and_0_is_greedy(asked: Asked, versions: list[Version]) -> None:
    greedy = asked.text(versions[0], chat(temperature=0))
    assert asked.text(versions[0], chat(temperature=0, seed=9)) == greedy
    assert asked.text(versions[0], chat(top_p=1e-9)) == greedy  # the likeliest token alone
    assert any(asked.text(versions[0], chat(seed=seed)) != greedy for seed in range(5))


def test_log_probabilities_are_the_models_own(asked: Asked, versions: list[Version]) -> None:
    """Those of temperature 1, whatever the temperature was; worked out by the network alone."""
    question = chat(captured=True, temperature=0.5, seed=1, top_p=0.8, max_tokens=20)
    choice = asked.answer(versions[0], question)["choices"][0]
    answered = choice["token_ids"]
    content = choice["logprobs"]["content"]
    assert [each["token"] for each in content] == [f"token_id:{token}" for token in answered]
    tokenizer = AutoTokenizer.from_pretrained(versions[0].base_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "YES or NO?"}], add_generation_prompt=True, tokenize=False
    )
    prompted = tokenizer.encode(prompt, add_special_tokens=False)
    network = AutoModelForCausalLM.from_pretrained(versions[0].base_model)
    with torch.inference_mode():
        logits = network(torch.tensor([prompted + answered])).logits[0].log_softmax(-1)
    values = [float(logits[len(prompted) + n - 1, t]) for n, t in enumerate(answered)]
    assert [each["logprob"] for each in content] == pytest.approx(values, abs=1e-4)


def test_a_request_that_is_dropped_leaves_the_batch(
    asked: Asked, versions: list[Version], sizes: list[int]
) -> None:
    async def drop() -> None:
        chunks = asked.backend.stream(
            versions[0], chat(max_tokens=LONG, temperature=0, stream=True)
        )
        for _ in range(3):
            await anext(chunks)
        await chunks.aclose()
        whole = asyncio.create_task(
            asked.backend.answer(versions[1], chat(max_tokens=LONG, temperature=0))
        )
        await asyncio.sleep(0.05)
        whole.cancel()

    asked.run(drop())
    asked.until(lambda: not asked.backend._engine._busy())
    assert len(sizes) < LONG


def test_a_failed_pass_ends_its_requests_and_not_the_engine(
    asked: Asked, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(asked, versions[0])
    before = asked.text(versions[0], chat(temperature=0))
    for error, status in ((torch.OutOfMemoryError("full"), 503), (ValueError("no"), 500)):

        def fails(*_: Any, error: Exception = error) -> torch.Tensor:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(base, "forward", fails)
            with pytest.raises(ApiError) as raised:
                asked.text(versions[0], chat())
            assert raised.value.status == status
    assert asked.text(versions[0], chat(temperature=0)) == before


def test_a_prompt_that_fails_leaves_the_running_rows_alone(
    asked: Asked, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(asked, versions[0])
    forward = base.forward
    long = chat("rise", temperature=0, max_tokens=40, stream=True)
    alone = streamed(asked.chunks(versions[0], long))

    def fails(tokens: torch.Tensor, *more: Any) -> torch.Tensor:
        if tokens.shape[1] > 200:
            raise torch.OutOfMemoryError("full")
        return forward(tokens, *more)

    async def overlap() -> str:
        chunks = []
        async for chunk in asked.backend.stream(versions[0], long):
            chunks.append(chunk)
            if len(chunks) == 5:
                with pytest.raises(ApiError, match="memory"):
                    await asked.backend.answer(versions[0], chat("rise " * 300))
        return streamed(chunks)

    monkeypatch.setattr(base, "forward", fails)
    assert asked.run(overlap()) == alone


def test_more_requests_than_memory_wait(
    asked: Asked, versions: list[Version], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = [(versions[n % 4], chat(text, temperature=0)) for n, text in enumerate(QUESTIONS)]
    alone = [asked.text(*each) for each in work]
    monkeypatch.setattr(base_of(asked, versions[0]), "cache_tokens", 150)
    assert asked.texts(*work) == alone
    assert 1 < max(sizes) <= 4


def test_versions_take_turns_where_layers_do_not_see_rows(
    asked: Asked, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts get tokens of any row; a batch then has one version, and the others wait."""
    work = [(versions[n // 2], chat(text, temperature=0)) for n, text in enumerate(QUESTIONS)]
    alone = [asked.text(*each) for each in work]
    overlay, used = base_of(asked, versions[0]).overlay, []
    use = overlay.use
    monkeypatch.setattr(overlay, "use", lambda adapters: (used.append(adapters), use(adapters)))
    assert asked.texts(*work) == alone
    assert max(len({*map(id, adapters)}) for adapters in used) > 1
    used.clear()
    monkeypatch.setattr(overlay, "mixes", False)
    assert asked.texts(*work) == alone
    assert max(map(len, used)) > 1
    assert max(len({*map(id, adapters)}) for adapters in used) == 1


def test_an_unloaded_version_is_not_answered_and_a_running_one_ends(
    asked: Asked, versions: list[Version], base_model: str
) -> None:
    again = Version("other", 2, None, base_model, None, versions[2].checkpoint)
    question = chat(temperature=0, max_tokens=40, stream=True)
    alone = streamed(asked.chunks(versions[2], question))
    asked.load(again)

    async def unload() -> str:
        chunks = []
        async for chunk in asked.backend.stream(again, question):
            chunks.append(chunk)
            await asked.backend.unload(again)
        return streamed(chunks)

    assert asked.run(unload()) == alone
    assert again not in asked.backend.loaded()
    with pytest.raises(BackendAway, match="not loaded"):
        asked.text(again, chat())


def test_a_model_whose_rows_cannot_join_answers_in_batches_that_start_together(
    base_model: str, tmp_path: Path
) -> None:
    """A window of 8 tokens: its cache forgets what is before."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tokenizer.save_pretrained(tmp_path / "window")
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
        max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "window")
    folder = str(tmp_path / "window")
    steps = [version(folder, 0), version(folder, 1, make_checkpoint(folder, tmp_path, 1))]
    with asyncio.Runner() as runner:
        asked = Asked(runner)
        asked.load(*steps)
        assert base_of(asked, steps[0]).layers is None
        work = [
            (each, chat(text, temperature=0, max_tokens=12)) for each in steps for text in QUESTIONS
        ]
        alone = [asked.text(*each) for each in work]
        assert len(set(alone)) > 2
        assert asked.texts(*work) == alone
        assert (
            streamed(asked.chunks(steps[1], chat(temperature=0, max_tokens=12, stream=True)))
            == alone[8]
        )
        asked.run(asked.backend.close())


def test_a_closed_engine_says_so(base_model: str) -> None:
    with asyncio.Runner() as runner:
        asked = Asked(runner)
        asked.load(version(base_model, 0))
        assert asked.run(asked.backend.look())

        async def close() -> None:
            running = asyncio.create_task(
                asked.backend.answer(version(base_model, 0), chat(max_tokens=LONG, temperature=0))
            )
            await asyncio.sleep(0.05)
            await asked.backend.close()
            with pytest.raises(BackendAway, match="ended"):
                await running

        asked.run(close())
        assert not asked.run(asked.backend.look())


def test_a_text_is_continued_as_it_is(asked: Asked, versions: list[Version]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(versions[0].base_model)
    ids = tokenizer.encode("Will the market", add_special_tokens=False)
    by_text = asked.text(versions[1], complete("Will the market", temperature=0))
    assert by_text == asked.text(versions[1], complete(ids, temperature=0))
    assert by_text == asked.text(versions[1], complete(["Will the market"], temperature=0))
