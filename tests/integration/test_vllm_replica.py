"""A vLLM server as a backend, on a stand-in of its protocol: what it loads, and what fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from babylon_tasks.settings import Settings
from tests.checkpoints import make_version
from tests.vllm_server import Running, serving
from workers.serve.backend import ApiError, BackendAway, CannotServe, Question, Version
from workers.serve.follower import Follower
from workers.serve.http.gathered import Gathered
from workers.serve.http.requests import parse
from workers.serve.loader import Loader
from workers.serve.router import Router
from workers.serve.upstream import Upstream
from workers.serve.vllm import adapters, signs
from workers.serve.vllm import replica as replica_module
from workers.serve.vllm.names import Adapter
from workers.serve.vllm.replica import Replica, replicas

HI = {"messages": [{"role": "user", "content": "hi"}]}
BASE = Version("agent", 0, None, "/models/base")


@pytest.fixture
def vllm() -> Iterator[Running]:
    with serving() as running:
        yield running


def run(
    vllm: Running,
    do: Callable[[Replica], Awaitable[Any]],
    *,
    seconds: float = 20.0,
    most: int = 4,
    key: str | None = None,
) -> Any:
    """Do something with a replica, in an event loop of its own."""

    async def main() -> Any:
        secret = SecretStr(key) if key else None
        replica = Replica(Upstream(vllm.url, secret, "gpu1:8001", seconds), most)
        try:
            return await do(replica)
        finally:
            await replica.close()

    return asyncio.run(main())


def chat(stream: bool = False, captured: bool = False, **more: Any) -> Question:
    return Question("chat", {**HI, **more}, stream, captured)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def collect(replica: Replica, version: Version, question: Question) -> list[dict[str, Any]]:
    return [chunk async for chunk in replica.stream(version, question)]


def test_a_version_is_loaded_proven_asked_and_unloaded(vllm: Running, tmp_path: Path) -> None:
    version = make_version(tmp_path, 3)

    async def do(replica: Replica) -> None:
        assert await replica.look()
        assert version not in replica.loaded()
        with pytest.raises(BackendAway):
            await replica.answer(version, chat())
        await replica.load(version)
        await replica.load(version)
        await replica.load(BASE)
        assert set(replica.loaded()) == {version, BASE}
        (name,) = vllm.state.loaded
        assert name.startswith("agent/3-")
        assert text_of(await replica.answer(version, chat())).startswith(name)
        assert text_of(await replica.answer(BASE, chat())).startswith("base")
        await replica.unload(version)
        await replica.unload(BASE)
        assert not replica.loaded()
        assert not vllm.state.loaded

    run(vllm, do)
    paths = [path for path, _ in vllm.state.asked]
    assert paths.count("/v1/load_lora_adapter") == 1
    assert all("load_inplace" not in body for _, body in vllm.state.asked)


def test_a_name_is_that_of_the_weights(vllm: Running, tmp_path: Path) -> None:
    """The cache of prompts knows adapters by name: other weights must have another name."""
    first = make_version(tmp_path / "a", 3)
    other = make_version(tmp_path / "b", 3)  # the same step and token, of another store

    async def do(replica: Replica) -> None:
        await replica.load(first)
        await replica.load(other)
        assert len(vllm.state.loaded) == 2
        before = dict(vllm.state.loaded)
        await replica.unload(first)
        await replica.load(first)
        assert vllm.state.loaded == before

    run(vllm, do)


def test_a_name_stays_as_long_as_a_version_has_it(vllm: Running, tmp_path: Path) -> None:
    """After an upgrade the first step pins the base model's revision: two versions, one step."""
    before = make_version(tmp_path, 3)
    pinned = replace(before, base_revision="1f")

    async def do(replica: Replica) -> None:
        await replica.load(before)
        await replica.load(pinned)
        (name,) = vllm.state.loaded
        await replica.unload(before)
        assert await replica.look()
        assert set(replica.loaded()) == {pinned}
        assert text_of(await replica.answer(pinned, chat())).startswith(name)
        await replica.load(before)
        assert before.checkpoint is not None
        shutil.rmtree(before.checkpoint)
        assert await replica.look()
        assert not replica.loaded()
        assert not vllm.state.loaded

    run(vllm, do)


def test_who_answers_as_the_base_model_is_not_loaded(vllm: Running, tmp_path: Path) -> None:
    version = make_version(tmp_path, 3)
    vllm.state.answers_as_base = True

    async def do(replica: Replica) -> None:
        with pytest.raises(CannotServe, match=r"does not answer as agent@3: .*like the base model"):
            await replica.load(version)
        assert not replica.loaded()
        assert not vllm.state.loaded
        vllm.state.answers_as_base = False
        await replica.load(version)

    run(vllm, do)


def test_another_base_model_is_not_asked(vllm: Running, tmp_path: Path) -> None:
    version = make_version(tmp_path, 3)
    older = make_version(tmp_path, 2, proven=False)
    vllm.state.root, vllm.state.other_base = "/models/other", True

    async def do(replica: Replica) -> None:
        with pytest.raises(CannotServe, match="its base model is another"):
            await replica.load(version)
        for unproven in (older, BASE):
            with pytest.raises(CannotServe, match=r"/models/other.*start vLLM with --model"):
                await replica.load(unproven)
        vllm.state.other_base = False
        await replica.load(version)  # the same model under another path: the proof tells
        await replica.load(BASE)

    run(vllm, do)


@pytest.mark.parametrize(
    "root", ["/models/base", "/data/base", "/hub/models----models--base/snapshots/1f"]
)
def test_the_base_model_may_have_another_path_there(vllm: Running, root: str) -> None:
    vllm.state.root = root
    run(vllm, lambda replica: replica.load(BASE))


def test_a_version_without_a_proof_is_taken_and_told_once(
    vllm: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = make_version(tmp_path, 3, proven=False)

    async def do(replica: Replica) -> None:
        await replica.load(version)
        await replica.unload(version)
        await replica.load(version)

    with caplog.at_level(logging.WARNING):
        run(vllm, do)
    assert [r.getMessage() for r in caplog.records if "has no proof" in r.getMessage()] == [
        "gpu1:8001: agent@3 has no proof, since an older release trained it: it is taken as it is"
    ]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"max_lora_rank": 4}, r"of rank 4, and this one has 8: start vLLM with --max-lora-rank 8"),
        ({"blind": True}, r"does not find .*/agent/3-9: .*CHECKPOINT_STORE must be there"),
        ({"updating": False}, r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_change(
    vllm: Running, tmp_path: Path, fault: dict[str, Any], told: str
) -> None:
    version = make_version(tmp_path, 3)
    for name, value in fault.items():
        setattr(vllm.state, name, value)
    with pytest.raises(CannotServe, match=told):
        run(vllm, lambda replica: replica.load(version))


def test_files_that_are_damaged_or_gone_are_not_loaded(vllm: Running, tmp_path: Path) -> None:
    damaged, gone = make_version(tmp_path, 1), make_version(tmp_path, 2)
    assert damaged.checkpoint is not None
    assert gone.checkpoint is not None
    weights = Path(damaged.checkpoint, "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[::-1])
    shutil.rmtree(gone.checkpoint)
    for version, told in ((damaged, "is damaged"), (gone, "cannot read the checkpoint")):
        with pytest.raises(CannotServe, match=told):
            run(vllm, lambda replica, version=version: replica.load(version))
    assert not vllm.state.asked


def test_a_replica_has_no_more_adapters_than_it_may(vllm: Running, tmp_path: Path) -> None:
    versions = [make_version(tmp_path, step) for step in (1, 2, 3)]

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        await replica.load(versions[0])
        await replica.load(versions[1])
        with pytest.raises(CannotServe, match="has 2 adapters already"):
            await replica.load(versions[2])
        await replica.unload(versions[0])
        await replica.load(versions[2])

    run(vllm, do, most=2)


def test_a_restart_is_noticed(vllm: Running, tmp_path: Path) -> None:
    version = make_version(tmp_path, 3)

    async def do(replica: Replica) -> None:
        await replica.load(version)
        await replica.load(BASE)
        vllm.die()
        assert not await replica.look()
        with pytest.raises(BackendAway):
            await replica.answer(version, chat())
        vllm.start()
        # Before the next look vLLM itself does not know the name: another replica may be asked.
        with pytest.raises(BackendAway, match="has lost the version"):
            await replica.answer(version, chat())
        assert await replica.look()
        assert set(replica.loaded()) == {BASE}
        await replica.load(version)
        assert text_of(await replica.answer(version, chat())).startswith("agent/3-")

    run(vllm, do)


def test_what_an_earlier_endpoint_loaded_is_used_again(vllm: Running, tmp_path: Path) -> None:
    version = make_version(tmp_path, 3)
    run(vllm, lambda replica: replica.load(version))
    run(vllm, lambda replica: replica.load(version))
    assert len(vllm.state.loaded) == 1


def test_what_another_endpoint_takes_away_before_it_is_proven_is_loaded_again(
    vllm: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, load, times = make_version(tmp_path, 3), adapters.load, 1

    async def load_and_lose(upstream: Upstream, adapter: Adapter) -> None:
        nonlocal times
        await load(upstream, adapter)
        if times:
            times -= 1
            del vllm.state.loaded[adapter.name]

    monkeypatch.setattr(adapters, "load", load_and_lose)
    run(vllm, lambda replica: replica.load(version))
    assert len(vllm.state.loaded) == 1
    times = 100
    with pytest.raises(BackendAway, match="has lost the version"):
        run(vllm, lambda replica: replica.load(make_version(tmp_path, 4)))


@pytest.mark.parametrize(
    ("status", "why"), [(401, "refuses our key (401)"), (404, "answers 404: is it the URL of a")]
)
def test_why_a_server_is_away_is_kept_and_not_logged_each_second(
    vllm: Running, status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.state.refuse = status

    async def do(replica: Replica) -> None:
        assert not await replica.look()
        assert not await replica.look()
        assert why in replica.why_away

    run(vllm, do)
    assert not caplog.records


def test_an_adapter_without_files_is_taken_away_before_it_ends_the_engine(
    vllm: Running, tmp_path: Path
) -> None:
    version, *others = [make_version(tmp_path, step) for step in (1, 2, 3, 4)]
    assert version.checkpoint is not None
    vllm.state.max_cpu_loras = 2
    checkpoint = version.checkpoint

    async def do(replica: Replica) -> None:
        for each in (version, *others):
            await replica.load(each)
        shutil.rmtree(checkpoint)
        assert await replica.look()
        assert set(replica.loaded()) == set(others)
        with pytest.raises(BackendAway):
            await replica.answer(version, chat())
        assert await replica.look()

    run(vllm, do)
    assert not vllm.state.engine_dead


def test_a_store_that_is_away_takes_no_version_away(vllm: Running, tmp_path: Path) -> None:
    """Unmounted, say: what vLLM has loaded answers on."""
    store = tmp_path / "store"
    store.mkdir()
    version = make_version(store, 1)

    async def do(replica: Replica) -> None:
        await replica.load(version)
        store.rename(tmp_path / "unmounted")
        store.mkdir()
        assert await replica.look()
        assert version in replica.loaded()
        (tmp_path / "unmounted" / "agent").rename(store / "agent")
        shutil.rmtree(str(version.checkpoint))
        assert await replica.look()
        assert version not in replica.loaded()

    run(vllm, do)


def test_a_dead_engine_does_not_live(vllm: Running, tmp_path: Path) -> None:
    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        vllm.state.engine_dead = True
        assert not await replica.look()
        with pytest.raises(BackendAway, match=r"fails \(500\)"):
            await replica.answer(BASE, chat())
        with pytest.raises(BackendAway, match=r"fails \(500\)"):
            await replica.load(make_version(tmp_path, 1))

    run(vllm, do)


def test_an_engine_that_hangs_does_not_live_whatever_its_health_says(
    vllm: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "STALL_SECONDS", 0.0)
    monkeypatch.setattr(replica_module, "PROBE_SECONDS", 0.1)

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        vllm.state.token_seconds = 600.0
        asking = asyncio.create_task(replica.answer(BASE, chat()))
        while not vllm.state.running:
            await asyncio.sleep(0.005)
        assert await replica.look()  # the first count
        assert not await replica.look()
        vllm.state.tokens_made += 1
        assert await replica.look()  # it works on something
        assert not await replica.look()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        for _ in range(2):  # nobody waits, and it still hangs
            assert not await replica.look()
        vllm.state.token_seconds = 0.0
        while not await replica.look():  # the next token that we ask for comes
            await asyncio.sleep(0.01)
        assert await replica.look()

    run(vllm, do)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_ends_servers_is_asked_twice_and_others_are_answered(stream: bool) -> None:
    async def main(servers: list[Running]) -> None:
        backends = [Replica(Upstream(s.url, None, s.url, 20), 4) for s in servers]
        loader = Loader(backends, 4)
        router = Router(cast(Follower, None), loader, 60.0)

        async def ask(text: str) -> None:
            question = Question("chat", {"messages": [{"role": "user", "content": text}]},
                                stream, captured=False)  # fmt: skip
            async with router.ask(BASE, question) as answering:
                assert [chunk async for chunk in answering.chunks]

        await loader.look()
        for backend in backends:
            await loader.load(backend, BASE)
        await ask("Now?")
        for server in servers:
            server.state.deadly = "poison"
        with pytest.raises(ApiError, match=r" fails \(500\)") as failed:
            await ask("poison")
        assert failed.value.status == 502
        assert [server.state.engine_dead for server in servers].count(False) == 1
        for _ in range(4):  # before anybody looks
            await ask("Now?")
        await loader.close()

    with contextlib.ExitStack() as running:
        asyncio.run(main([running.enter_context(serving()) for _ in range(3)]))


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("captured", [True, False])
def test_a_stream_has_what_the_whole_answer_has(vllm: Running, kind: Any, captured: bool) -> None:
    body: dict[str, Any] = {"max_tokens": 5, "n": 2, "stream_options": {"include_usage": True}}
    body |= HI if kind == "chat" else {"prompt": "hi"}

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        whole = await replica.answer(BASE, Question(kind, body, False, captured))
        chunks = await collect(replica, BASE, Question(kind, body, True, captured))
        assert chunks[-1]["usage"] == whole["usage"]
        for index, choice in enumerate(whole["choices"]):
            parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            streamed = "".join(
                p["delta"]["content"] if kind == "chat" else p["text"] for p in parts
            )
            assert streamed == (choice["message"]["content"] if kind == "chat" else choice["text"])
            ids = [token for part in parts for token in part.get("token_ids") or ()]
            assert ids == choice["token_ids"]
            assert (choice["logprobs"] is not None) == captured

    run(vllm, do)


def test_what_the_client_said_is_passed_on_and_openais_defaults_are_set(vllm: Running) -> None:
    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        await replica.answer(BASE, chat(stop=["x"], seed=3, temperature=None))
        await replica.answer(BASE, chat(captured=True, temperature=0.0, top_k=5, top_logprobs=2))
        given = {"prompt": "hi", "logprobs": 3, "return_tokens_as_token_ids": True}
        await replica.answer(BASE, Question("text", given, False, True))

    run(vllm, do)
    plain, captured, text = [body for _, body in vllm.state.asked]
    assert plain == {
        **HI, "model": "base", "stream": False, "stop": ["x"], "seed": 3, "return_token_ids": True,
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": False, "preserve_thinking": True},
    }  # fmt: skip
    wanted = {"temperature": 0.0, "top_k": 5, "top_logprobs": 2, "logprobs": True}
    assert captured | wanted | {"return_token_ids": True} == captured
    assert text["logprobs"] == 3
    assert text["return_tokens_as_token_ids"] is True
    assert "chat_template_kwargs" not in text


def test_a_schema_is_passed_on_and_what_is_so_anyway_is_not(vllm: Running) -> None:
    """VLLM refuses `tools: []`, a `tool_choice` without tools, and `structured_outputs: {}`."""
    schema = {"structured_outputs": {"choice": ["buy", "wait"]}}
    anyway = {"tools": [], "tool_choice": "auto", "structured_outputs": {}, "logit_bias": {},
              "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    plain = {"echo": False, "suffix": "", "structured_outputs": {}}
    questions = [chat(), chat(**anyway), chat(**schema),
                 Question("text", {"prompt": "hi"}, False, False),
                 Question("text", {"prompt": "hi", **plain}, False, False)]  # fmt: skip

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        for question in questions:
            replica.check(question)
            await replica.answer(BASE, question)

    run(vllm, do)
    bodies = [body for _, body in vllm.state.asked]
    assert bodies[1] == bodies[0]
    assert bodies[2] == {**bodies[0], **schema}
    assert bodies[4] == bodies[3]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("first", ["base", "adapter"])
def test_the_base_model_beside_an_adapter_is_not_remembered(
    vllm: Running, tmp_path: Path, stream: bool, first: str
) -> None:
    """On a CPU vLLM answers with the adapter, and so with the policy of another version."""
    version = make_version(tmp_path, 3)

    async def why_not(replica: Replica, asked: Version) -> str | None:
        gathered, body = Gathered(), {**HI, "max_tokens": 6, "model": "agent", "stream": stream}
        parsed = parse("chat", json.dumps(body).encode(), None, captured=True)
        if stream:
            for chunk in await collect(replica, asked, parsed.question):
                gathered.add(chunk)
        else:
            gathered.add(await replica.answer(asked, parsed.question))
        (call,) = gathered.captured(asked, "vllm", parsed)
        return call.why_not_kept()

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        await replica.load(version)
        assert await why_not(replica, BASE) is None
        vllm.state.held = True
        asking = {}
        for number, asked in enumerate((BASE, version) if first == "base" else (version, BASE)):
            asking[asked] = asyncio.create_task(why_not(replica, asked))
            while vllm.state.running == number:
                await asyncio.sleep(0.002)
        vllm.state.held = False
        reasons = {asked: await task for asked, task in asking.items()}
        assert reasons[version] is None
        assert reasons[BASE] in ("no_tokens", "odd_logprobs")
        assert await why_not(replica, BASE) is None

    run(vllm, do)


def test_the_tokens_of_a_stream_that_is_cut_are_known(vllm: Running) -> None:
    """A key's budget counts them, whether or not answers are remembered."""

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        gathered = Gathered()
        async with aclosing(replica.stream(BASE, chat(True, n=2))) as chunks:
            async for chunk in chunks:
                gathered.add(chunk)
                if gathered.completion_tokens == 6:
                    assert gathered.prompt_tokens == 3
                    return
        pytest.fail("they were not counted")

    run(vllm, do)


def test_a_stream_that_the_client_leaves_ends_in_vllm(vllm: Running) -> None:
    vllm.state.token_seconds = 0.005

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        async with aclosing(replica.stream(BASE, chat(True, max_tokens=100_000))) as chunks:
            await anext(chunks)
            assert vllm.state.running == 1
        asking = asyncio.create_task(replica.answer(BASE, chat(max_tokens=100_000)))
        vllm.state.most_running = 0
        while not vllm.state.most_running:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(vllm, do)
    ends_at = time.monotonic() + 10
    while vllm.state.running and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert vllm.state.running == 0


def test_a_server_that_ends_in_the_middle_is_told_apart_from_one_that_did_not_begin(
    vllm: Running,
) -> None:
    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        vllm.state.die_after = 2
        async with aclosing(replica.stream(BASE, chat(True))) as chunks:
            for _ in range(3):
                await anext(chunks)
            with pytest.raises(ApiError, match=r"gpu1:8001 ") as failed:
                await anext(chunks)
        assert failed.value.status == 502
        vllm.die()
        with pytest.raises(BackendAway):
            await collect(replica, BASE, chat(True))

    run(vllm, do)


@pytest.mark.parametrize("stream", [True, False])
def test_errors_are_told_to_whom_they_concern(vllm: Running, stream: bool) -> None:
    async def ask(replica: Replica, question: Question | None = None, **more: Any) -> None:
        question = question or chat(stream, **more)
        await (collect(replica, BASE, question) if stream else replica.answer(BASE, question))

    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        with pytest.raises(ApiError, match="temperature must be non-negative") as refused:
            await ask(replica, temperature=-1)
        assert not isinstance(refused.value, BackendAway)
        assert (refused.value.status, refused.value.param) == (400, "temperature")
        question = chat(stream)
        for status in (401, 500, 503):
            vllm.state.refuse = status
            with pytest.raises(BackendAway, match=f"gpu1:8001 .*.{status}"):
                await ask(replica, question)
        vllm.state.refuse = 500
        with pytest.raises(ApiError, match=r"gpu1:8001 fails .500") as failed:
            await ask(replica, question)  # it may be what makes it fail
        assert (failed.value.status, type(failed.value)) == (502, ApiError)
        vllm.state.refuse, vllm.state.hang = None, True
        with pytest.raises(BackendAway, match="does not answer in time"):
            await ask(replica)

    run(vllm, do, seconds=0.3)


def test_a_wrong_key_is_no_fault_of_the_client(vllm: Running) -> None:
    vllm.state.key = "right"
    run(vllm, lambda replica: replica.load(BASE), key="right")
    with pytest.raises(BackendAway) as away:
        run(vllm, lambda replica: replica.load(BASE), key="a-wrong-one")
    assert "a-wrong-one" not in str(away.value)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("odd", ["\ud800", nested(100_000)], ids=["half", "deep"])
def test_what_cannot_be_written_as_json_is_the_clients_fault(
    vllm: Running, stream: bool, odd: Any
) -> None:
    async def do(replica: Replica) -> None:
        await replica.load(BASE)
        question = chat(stream, stop=odd)
        with pytest.raises(ApiError) as refused:
            await (collect(replica, BASE, question) if stream else replica.answer(BASE, question))
        assert refused.value.status == 400

    run(vllm, do)


def test_replicas_are_named_without_their_passwords() -> None:
    settings = Settings(vllm_urls="http://u:secret@gpu1:8001/v1, https://gpu2")
    assert [replica.name for replica in replicas(settings)] == ["gpu1:8001", "gpu2"]


@pytest.mark.parametrize(
    "body",
    [
        {"chat_template": "{{ 1 }}"},
        {"kv_transfer_params": {}},
        {"prompt_logprobs": 20},
        {"prompt_embeds": "x"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
)
def test_what_vllm_must_not_get_is_refused(vllm: Running, body: dict[str, Any]) -> None:
    async def do(replica: Replica) -> None:
        with pytest.raises(ApiError) as refused:
            replica.check(chat(**body))
        assert (refused.value.status, refused.value.param) == (400, next(iter(body)))
        parts = [{"type": "text", "text": "x"}]
        replica.check(chat(messages=[{"role": "user", "content": parts}], tools=[], n=2))

    run(vllm, do)
