"""A real vLLM server as a backend: versions as the trainer made them, and what cannot be served."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks.checkpoints.proof import read_proof
from babylon_tasks.records.proofs import PROOF
from tests.vllm.conftest import Base
from tests.vllm.servers import VllmServer
from workers.serve.backend import ApiError, CannotServe, Question, Version
from workers.serve.upstream import Upstream
from workers.serve.vllm import adapters
from workers.serve.vllm.names import open_adapter
from workers.serve.vllm.replica import Replica

ASKED: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You are a trading agent."},
        {"role": "user", "content": "Will the market rise or fall? Answer in a sentence."},
    ],
    "max_tokens": 24,
}


def run(server: VllmServer, do: Callable[[Replica], Awaitable[Any]], most: int = 4) -> Any:
    async def main() -> Any:
        replica = Replica(Upstream(server.url, None, "vllm", 120), most)
        assert await replica.look()
        try:
            return await do(replica)
        finally:
            for version in list(replica.loaded()):
                await replica.unload(version)
            await replica.close()

    return asyncio.run(main())


def ids_and_logprobs(choice: dict[str, Any]) -> tuple[list[int], list[float]]:
    return choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]


def trainers_logprobs(
    base: Base, checkpoint: Path, prompt: list[int], ids: list[int]
) -> list[float]:
    import torch

    from workers.trainer.torch.checkpoint import policy
    from workers.trainer.torch.language_model import LanguageModel

    model = LanguageModel(base.model, torch.device("cpu"))
    tokens = torch.tensor([prompt + ids])
    predicts = torch.zeros(tokens.shape, dtype=torch.bool)
    predicts[:, len(prompt) - 1 : -1] = True
    with torch.no_grad(), policy(model, str(checkpoint)):
        return [float(value) for value in model.logprobs(tokens, predicts)[0]]


@pytest.mark.parametrize("size", ["tiny", "smol"])
def test_a_version_answers_with_the_trainers_tokens_and_log_probabilities(
    size: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(size)
    server: VllmServer = request.getfixturevalue(f"{size}_vllm")
    checkpoint = base.train("large", learning_rate=5e-3)
    version = base.version(1, checkpoint)

    async def do(replica: Replica) -> list[dict[str, Any]]:
        await replica.load(version)
        question = Question("chat", ASKED, True, True)
        return [chunk async for chunk in replica.stream(version, question)]

    first, *chunks = run(server, do)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ids = [token for choice in choices for token in ids_and_logprobs(choice)[0]]
    values = [value for choice in choices for value in ids_and_logprobs(choice)[1]]
    expected = trainers_logprobs(base, checkpoint, first["prompt_token_ids"], ids)
    assert len(values) == len(ids) == len(expected)
    apart = statistics.fmean(abs(a - b) for a, b in zip(values, expected, strict=True))
    assert apart < 0.15  # nats; bfloat16 there, float32 here. Another policy is 0.3 and more away

    import torch

    from workers.trainer.torch.language_model import LanguageModel

    chat = LanguageModel(base.model, torch.device("cpu")).chat
    assert first["prompt_token_ids"] == chat.encode([chat.prompt(ASKED["messages"])])[0]


def test_openais_defaults_are_those_of_the_trainer(smol: Base, smol_vllm: VllmServer) -> None:
    """Temperature 1 and nothing cut off: the drawn tokens are not all the likeliest."""

    async def do(replica: Replica) -> list[list[float]]:
        await replica.load(smol.itself)
        asked = {**ASKED, "n": 4, "seed": 1}
        answer = await replica.answer(smol.itself, Question("chat", asked, False, True))
        greedy = {**ASKED, "temperature": 0}
        best = await replica.answer(smol.itself, Question("chat", greedy, False, True))
        return [ids_and_logprobs(c)[1] for c in (*answer["choices"], *best["choices"])]

    *drawn, likeliest = [statistics.fmean(values) for values in run(smol_vllm, do)]
    assert statistics.fmean(drawn) < likeliest - 0.2


def test_the_base_model_under_a_versions_name_is_found(tiny: Base, tiny_vllm: VllmServer) -> None:
    """As servers did for weeks: the adapter of step 0 under the name of a later step."""
    trained = tiny.train("large", learning_rate=5e-3)
    nothing = tiny.train("nothing", learning_rate=1e-9)
    swapped = tiny.store.parent / "swapped"
    shutil.copytree(nothing, swapped)
    shutil.copy(trained / PROOF, swapped / PROOF)
    version = tiny.version(2, swapped, lineage="swapped")

    async def do(replica: Replica) -> None:
        with pytest.raises(CannotServe, match=r"swapped@2: it answers like the base model: -?\d%"):
            await replica.load(version)
        assert await replica.look()
        assert not replica.loaded()

    run(tiny_vllm, do)


def test_what_does_not_fit_is_told(tiny: Base, smol: Base, tiny_vllm: VllmServer) -> None:
    wide = tiny.version(3, tiny.train("wide", learning_rate=1e-3, lora_rank=16), lineage="wide")
    of_smol = smol.version(4, smol.train("large", learning_rate=5e-3), lineage="other")
    gone = open_adapter(tiny.version(5, tiny.train("large", learning_rate=5e-3), lineage="gone"))
    shutil.rmtree(gone.folder)

    async def do(replica: Replica) -> None:
        with pytest.raises(CannotServe, match="start vLLM with --max-lora-rank 16"):
            await replica.load(wide)
        with pytest.raises(CannotServe, match="base model"):
            await replica.load(of_smol)
        with pytest.raises(CannotServe, match="start vLLM with --model"):
            await replica.load(smol.itself)
        with pytest.raises(CannotServe, match=r"does not find .*gone/5-1.*CHECKPOINT_STORE"):
            await adapters.load(replica._upstream, gone)
        # It works as before.
        await replica.load(tiny.itself)
        await replica.answer(tiny.itself, Question("chat", ASKED, False, False))

    run(tiny_vllm, do)


def test_a_fine_tune_of_the_same_shape_is_another_base_model(
    tiny: Base, tiny_vllm: VllmServer, tmp_path: Path
) -> None:
    trained = tiny.train("large", learning_rate=5e-3)
    proof = read_proof(trained)
    assert proof is not None
    told = {"token_ids": proof.token_ids, "step": proof.step, "base": proof.step}
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / PROOF).write_text(json.dumps({**told, "base": [v - 0.6 for v in proof.base]}))
    version = tiny.version(6, other, lineage="tuned")

    async def do(replica: Replica) -> None:
        with pytest.raises(CannotServe, match=r"its base model is another: .* 0\.6 nats a token"):
            await replica.load(version)

    run(tiny_vllm, do)


def test_more_versions_than_slots_answer_as_themselves(tiny: Base, tiny_vllm: VllmServer) -> None:
    """vLLM keeps three: it reads the others again when they are asked, and they are right."""
    folders = [tiny.train(f"seed{n}", learning_rate=5e-3, seed=n) for n in range(5)]
    versions = [tiny.version(n + 1, folder, lineage="many") for n, folder in enumerate(folders)]

    async def do(replica: Replica) -> None:
        for version in versions:
            await replica.load(version)
        for version in versions:
            adapter = open_adapter(version)
            assert adapter.proof is not None
            assert replica._base is not None
            asked = (replica._upstream, replica._base.id, adapter.name, adapter.proof, {})
            assert await adapters.doubt_of(*asked) is None
        questions = [Question("chat", ASKED, False, False)] * len(versions)
        await asyncio.gather(*map(replica.answer, versions, questions))
        # One that vLLM has no room for, and whose files go: asked again, it would end the engine.
        assert versions[0].checkpoint is not None
        shutil.rmtree(versions[0].checkpoint)
        assert await replica.look()
        assert set(replica.loaded()) == set(versions[1:])
        await replica.answer(versions[4], questions[0])

    run(tiny_vllm, do, most=5)
    assert tiny_vllm.is_up()


def test_other_weights_under_the_same_number_have_another_name(
    tiny: Base, tiny_vllm: VllmServer
) -> None:
    """vLLM's cache of prompts is by name; the same prompt is answered by the new weights."""
    one, other = (tiny.train(f"seed{n}", learning_rate=5e-3, seed=n) for n in (0, 1))
    first = tiny.version(7, one, lineage="same")
    prompt = Question("chat", {**ASKED, "temperature": 0}, False, True)

    async def ask(version: Version) -> tuple[str, list[float]]:
        async def do(replica: Replica) -> tuple[str, list[float]]:
            await replica.load(version)
            answer = await replica.answer(version, prompt)
            return answer["model"], ids_and_logprobs(answer["choices"][0])[1]

        return await asyncio.to_thread(run, tiny_vllm, do)

    before = asyncio.run(ask(first))
    assert first.checkpoint is not None
    shutil.rmtree(first.checkpoint)
    after = asyncio.run(ask(tiny.version(7, other, lineage="same")))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_work_for_a_client_that_left_ends(tiny: Base, tiny_vllm: VllmServer) -> None:
    long = {**ASKED, "max_tokens": 1900, "min_tokens": 1900}

    async def do(replica: Replica) -> None:
        await replica.load(tiny.itself)
        question = Question("chat", long, True, False)
        async with aclosing(replica.stream(tiny.itself, question)) as chunks:
            for _ in range(3):
                await anext(chunks)
            assert tiny_vllm.metric("vllm:num_requests_running") == 1
        whole = replica.answer(tiny.itself, Question("chat", long, False, False))
        asking = asyncio.create_task(whole)
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(tiny_vllm, do)
    made = tiny_vllm.metric("vllm:generation_tokens_total")
    ends_at = time.monotonic() + 30
    while tiny_vllm.metric("vllm:num_requests_running") and time.monotonic() < ends_at:
        time.sleep(0.1)
    assert tiny_vllm.metric("vllm:num_requests_running") == 0
    assert tiny_vllm.metric("vllm:generation_tokens_total") - made < 1500


def test_a_choice_binds_the_answer_and_what_is_so_anyway_is_no_error(
    tiny: Base, tiny_vllm: VllmServer
) -> None:
    bound = {**ASKED, "structured_outputs": {"choice": ["YES", "NO"]}}
    anyway = {**ASKED, "tools": [], "tool_choice": "auto", "structured_outputs": {},
              "logit_bias": {}, "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    plain = {"prompt": "x", "max_tokens": 2, "echo": False, "suffix": ""}

    async def do(replica: Replica) -> None:
        await replica.load(tiny.itself)
        for question in (
            Question("chat", bound, False, False),
            Question("chat", anyway, False, False),
            Question("text", plain, False, False),
        ):
            replica.check(question)
            answer = await replica.answer(tiny.itself, question)
            assert len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"]
            if question.body is bound:
                assert answer["choices"][0]["message"]["content"] in ("YES", "NO")

    run(tiny_vllm, do)


@pytest.mark.parametrize("stream", [True, False])
def test_what_vllm_refuses_is_told_in_its_words(
    tiny: Base, tiny_vllm: VllmServer, stream: bool
) -> None:
    tool = {"type": "function", "function": {"name": "buy"}}

    async def ask(replica: Replica, **more: Any) -> None:
        question = Question("chat", {**ASKED, **more}, stream, False)
        if stream:
            _ = [chunk async for chunk in replica.stream(tiny.itself, question)]
        else:
            await replica.answer(tiny.itself, question)

    async def do(replica: Replica) -> None:
        await replica.load(tiny.itself)
        for more, told in (
            ({"max_tokens": 99_999}, "max_tokens"),
            ({"temperature": -1}, "temperature must be non-negative"),
            ({"tools": [tool]}, "--enable-auto-tool-choice"),
        ):
            with pytest.raises(ApiError, match=told) as refused:
                await ask(replica, **more)
            assert refused.value.status == 400

    run(tiny_vllm, do)
