"""Names move when their versions are loaded; requests keep theirs; backends fail over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.shares import Share
from tests.unit.fake_backend import FakeBackend, version
from workers.serve import follower as follower_module
from workers.serve import router as router_module
from workers.serve.backend import ApiError, BackendAway, Question, Version
from workers.serve.directory import Directory, Entry
from workers.serve.follower import Follower
from workers.serve.loader import Loader
from workers.serve.router import Router

ASKED = Question("chat", {}, stream=True, captured=False)
WHOLE = Question("chat", {}, stream=False, captured=False)


class StandingStill(Directory):
    """The database's time goes on as a test says, so that no window ends in one."""

    def now(self) -> datetime:
        return self.at


class World:
    """The rows, the backends, and a router over them; `follow` is one look."""

    def __init__(self, backends: Sequence[FakeBackend] = (), slots: int = 4) -> None:
        self.backends = list(backends) or [FakeBackend()]
        self.promoted = {"agent": 0}
        self.shares: dict[str, tuple[int, float]] = {}
        self.now = datetime(2026, 1, 1, 10, 30, tzinfo=UTC)  # the database's, which stands still
        self.share_starts_at = self.now - timedelta(minutes=1)
        self.steps = 12
        self.postgres_answers = True
        self.loader = Loader(self.backends, slots)
        self.follower = Follower(self.read, self.loader, "agent", slots)
        self.router = Router(self.follower, self.loader, 300.0)

    def read(self, before: Directory) -> Directory:
        if not self.postgres_answers:
            raise ServerUnavailable("Postgres is away")
        entries = {}
        for name, step in self.promoted.items():
            steps = {number: version(number, name) for number in range(self.steps + 1)}
            share = self.shares.get(name)
            entries[name] = Entry(
                name=name,
                promoted=steps[step],
                shares=(Share(self.share_starts_at, *share),) if share else (),
                mark="",
                steps=steps,
                numbers={f"v1.0.{number}": number for number in range(1, self.steps + 1)},
                removed={},
            )
        return StandingStill(entries, at=self.now)

    async def follow(self, times: int = 2) -> None:
        for _ in range(times):
            await self.loader.look()
            await self.follower.follow()
            await asyncio.sleep(0.02)  # loads end

    async def ask(self, name: str = "agent", agent: str | None = None) -> str:
        """Ask; every chunk must come from the same version."""
        answers = set()
        async with self.router.ask(self.router.resolve(name, agent), ASKED) as answering:
            async for chunk in answering.chunks:
                answers.add(chunk["text"])
        (answer,) = answers
        assert answer == answering.version.name
        return answer


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_name_follows_the_rows() -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        assert await world.ask() == "agent@0"
        for step in (1, 2, 1, 5):
            world.promoted["agent"] = step
            await world.follow()
            assert await world.ask() == f"agent@{step}"
        assert await world.ask("agent@3") == "agent@3"
        assert await world.ask("agent-v1.0.2") == "agent@2"
        assert world.follower.moves == 4

    run(test)


@pytest.mark.parametrize(
    "name", ["agent@13", "agent-v9.0.0", "nobody", "agent@", "agent@-1", "", "@"]
)
def test_an_unknown_name_is_a_404(name: str) -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        with pytest.raises(ApiError) as caught:
            world.router.resolve(name, None)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")

    run(test)


def test_before_the_first_read_nothing_is_known() -> None:
    async def test() -> None:
        world = World()
        world.postgres_answers = False
        await world.follow()
        with pytest.raises(ApiError) as caught:
            world.router.resolve("agent", None)
        assert caught.value.status == 503
        assert not world.router.health().ready

    run(test)


def test_the_old_version_answers_until_the_new_one_is_loaded() -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        world.backends[0].may_load.clear()
        world.promoted["agent"] = 4
        await world.follow()
        assert await world.ask() == "agent@0"
        world.backends[0].may_load.set()
        await world.follow()
        assert await world.ask() == "agent@4"

    run(test)


def test_a_request_in_flight_keeps_its_version_over_promotions() -> None:
    async def test() -> None:
        world = World(slots=3)
        world.promoted["agent"] = 1
        await world.follow()
        gate = world.backends[0].gate = asyncio.Event()
        asking = asyncio.create_task(world.ask())
        await asyncio.sleep(0.02)
        world.backends[0].gate = None
        for step in (2, 3, 4):
            world.promoted["agent"] = step
            await world.follow(3)
            assert await world.ask() == f"agent@{step}"
        gate.set()
        assert await asking == "agent@1"
        assert world.backends[0].most <= 3

    run(test)


def test_what_cannot_be_loaded_leaves_the_name_where_it_was() -> None:
    async def test() -> None:
        world = World()
        world.promoted["agent"] = 1
        await world.follow()
        world.backends[0].cannot[version(2)] = "it answers as another"
        world.promoted["agent"] = 2
        await world.follow()
        assert await world.ask() == "agent@1"
        health = world.router.health()
        assert health.ready
        (problem,) = health.problems
        assert (problem.what, problem.why) == ("agent@2 on one", "it answers as another")
        with pytest.raises(ApiError, match="it answers as another"):
            await world.ask("agent@2")

    run(test)


def test_with_postgres_away_it_goes_on() -> None:
    async def test() -> None:
        world = World()
        world.promoted["agent"] = 1
        await world.follow()
        world.postgres_answers = False
        world.promoted["agent"] = 2
        await world.follow()
        assert await world.ask() == "agent@1"
        (problem,) = world.router.health().problems
        assert (problem.what, problem.why) == ("Postgres", "Postgres is away")
        world.postgres_answers = True
        await world.follow()
        assert await world.ask() == "agent@2"

    run(test)


def test_a_dead_replica_costs_no_request_and_gets_its_version_back() -> None:
    async def test() -> None:
        one, two = FakeBackend("one"), FakeBackend("two")
        world = World([one, two])
        world.promoted["agent"] = 1
        await world.follow()
        assert one.has == two.has == {version(1)}
        one.die()  # and nobody has looked yet
        for _ in range(4):
            assert await world.ask() == "agent@1"
        world.promoted["agent"] = 2  # a name does not wait for a dead replica
        await world.follow()
        assert await world.ask() == "agent@2"
        one.alive = True
        await world.follow()
        assert version(2) in one.has

    run(test)


def test_with_all_away_it_says_so() -> None:
    async def test() -> None:
        world = World([FakeBackend("one"), FakeBackend("two")])
        await world.follow()
        for backend in world.backends:
            backend.die()
        with pytest.raises(BackendAway):
            await world.ask()
        await world.follow()
        health = world.router.health()
        assert not health.ready
        assert [each.why for each in health.problems] == ["it is dead", "it is dead"]

    run(test)


def test_an_endpoint_that_starts_before_its_backend_logs_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.die()
        world = World([backend])
        await world.follow(3)
        assert [r.message for r in caplog.records] == [
            "one does not answer as it should: it is dead"
        ]

    run(test)


@pytest.mark.parametrize("why", ["it has lost its files", "nobody has looked since it died"])
def test_what_one_replica_cannot_load_another_answers(why: str) -> None:
    async def test() -> None:
        one, two = FakeBackend("one"), FakeBackend("two")
        world = World([one, two])
        await world.follow()
        one.cannot = {version(3): why}
        if "died" in why:
            one.die()
        assert await world.ask("agent@3") == "agent@3"
        assert await world.ask("agent@3") == "agent@3"
        two.die()
        with pytest.raises(ApiError):
            await world.ask("agent@4" if "died" in why else "agent@3")

    run(test)


def test_a_slow_replica_holds_a_name_up_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "_ALL_SECONDS", 60.0)

    async def test() -> None:
        quick, slow = FakeBackend("quick"), FakeBackend("slow")
        world = World([quick, slow])
        await world.follow()
        slow.may_load.clear()
        world.promoted["agent"] = 1
        await world.follow()
        assert await world.ask() == "agent@0"
        monkeypatch.setattr(follower_module, "_ALL_SECONDS", 0.0)  # it is over
        await world.follow()
        async with world.router.ask(world.router.resolve("agent", None), ASKED) as answering:
            assert answering.backend is quick
        assert answering.version == version(1)

    run(test)


def test_adapters_are_bounded_and_none_goes_under_a_request() -> None:
    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=3)
        world.promoted["agent"] = 1
        await world.follow()
        steps = [1, 2, 3, 4, 5, 1, 6, 7, 2, 8, 9]
        answers = await asyncio.gather(*(world.ask(f"agent@{step}") for step in steps[:3]))
        assert answers == [f"agent@{step}" for step in steps[:3]]
        for step in steps:
            assert await world.ask(f"agent@{step}") == f"agent@{step}"
        assert backend.most == 3
        assert version(1) in backend.has  # what the name stands for goes last

    run(test)


def test_what_is_being_unloaded_is_loaded_again_for_who_asks() -> None:
    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=2)
        await world.follow()
        for step in (1, 2):
            await world.ask(f"agent@{step}")
        backend.unload_seconds = 0.05
        asked = [asyncio.create_task(world.ask("agent@3"))]
        await asyncio.sleep(0.01)  # now version 1 goes
        asked += [asyncio.create_task(world.ask("agent@1"))]
        assert await asyncio.gather(*asked) == ["agent@3", "agent@1"]
        assert backend.loads == ["agent@0", "agent@1", "agent@2", "agent@3", "agent@1"]

    run(test)


def test_loads_at_once_stay_within_the_slots() -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.load_seconds = 0.03
        world = World([backend], slots=2)
        await world.follow()
        steps = range(1, 7)
        answers = await asyncio.gather(*(world.ask(f"agent@{step}") for step in steps))
        assert answers == [f"agent@{step}" for step in steps]
        assert backend.most == 2

    run(test)


def test_a_version_that_was_taken_away_is_loaded_again() -> None:
    """As by another endpoint in front of the same vLLM."""

    async def test() -> None:
        backend = FakeBackend()
        world = World([backend])
        await world.follow()
        assert await world.ask("agent@3") == "agent@3"
        backend.lost = {version(3)}
        assert await world.ask("agent@3") == "agent@3"
        assert backend.loads == ["agent@0", "agent@3", "agent@3"]

    run(test)


def test_a_replica_that_refuses_is_asked_once() -> None:
    async def test() -> None:
        one, two = FakeBackend("one"), FakeBackend("two")
        world = World([one, two])
        await world.follow()
        one.refuses = True
        async with world.router.ask(world.router.resolve("agent", None), ASKED) as answering:
            assert [chunk["by"] async for chunk in answering.chunks] == ["two"] * 3
        two.refuses = True
        with pytest.raises(BackendAway):
            await world.ask()

    run(test)


def test_clients_that_pin_versions_do_not_hold_a_promotion_up() -> None:
    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=4)
        world.promoted["agent"] = 1
        await world.follow()
        gate = backend.gate = asyncio.Event()
        pinned = [asyncio.create_task(world.ask(f"agent@{step}")) for step in (2, 3, 4, 5)]
        await asyncio.sleep(0.05)
        backend.gate = None
        assert await world.ask() == "agent@1"  # it has kept its slot
        world.promoted["agent"] = 7
        await world.follow(3)
        refused = [task for task in pinned if task.done()]
        assert len(refused) == 1
        with pytest.raises(ApiError, match="SERVE_ADAPTERS"):
            await refused[0]
        gate.set()
        await world.follow(4)
        assert await world.ask() == "agent@7"
        assert len(await asyncio.gather(*(task for task in pinned if task not in refused))) == 3
        assert backend.most <= 4

    run(test)


def test_a_version_by_its_number_gets_no_new_requests_where_a_promotion_needs_its_slot() -> None:
    """Else clients that ask for it again and again would hold the promotion up for ever."""

    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=3)
        world.promoted["agent"] = 1
        await world.follow()
        over = asyncio.Event()

        async def pester(step: int) -> None:
            while not over.is_set():
                with contextlib.suppress(ApiError):
                    await world.ask(f"agent@{step}")
                await asyncio.sleep(0)

        pestering = [asyncio.create_task(pester(step)) for step in (2, 3) for _ in range(5)]
        for step in (7, 8, 9):
            world.promoted["agent"] = step
            await world.follow(6)
            assert await world.ask() == f"agent@{step}"
        over.set()
        await asyncio.gather(*pestering)

    run(test)


def test_a_replica_that_cannot_load_does_not_stand_in_the_others_way() -> None:
    async def test() -> None:
        one, two = FakeBackend("one"), FakeBackend("two")
        world = World([one, two])
        await world.follow()
        one.cannot[version(7)] = "wrong path"
        assert await world.ask("agent@7") == "agent@7"
        one.die()  # and nobody has looked yet
        assert await world.ask("agent@8") == "agent@8"

    run(test)


def test_a_server_that_fails_to_load_is_a_problem() -> None:
    async def test() -> None:
        one = FakeBackend("one")
        world = World([one])
        await world.follow()
        one.loses_loads = True
        world.promoted["agent"] = 2
        await world.follow()
        assert await world.ask() == "agent@0"
        (problem,) = world.router.health().problems
        assert (problem.what, problem.why) == ("agent@2 on one", "one is away")

    run(test)


def test_a_lineage_that_nobody_asked_for_long_falls_back_if_its_new_version_is_broken() -> None:
    async def test() -> None:
        world = World(slots=3)
        world.promoted = {"agent": 1, "one": 1, "two": 1, "three": 1}
        await world.follow()
        for name in ("one", "two", "three"):
            await world.ask(name)
            await world.follow()
        assert await world.ask("one") == "one@1"
        for name in ("two", "three"):
            await world.ask(name)
            await world.follow()
        world.backends[0].cannot[version(2, "one")] = "damaged"
        world.promoted["one"] = 2
        world.backends[0].has.add(version(1, "one"))  # a slot was left for it
        await world.follow()
        with pytest.raises(ApiError, match="damaged"):
            await world.ask("one")
        await world.follow()
        assert await world.ask("one") == "one@1"

    run(test)


def test_with_every_slot_in_use_a_further_version_is_refused() -> None:
    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=2)
        await world.follow()
        gate = backend.gate = asyncio.Event()
        asking = [asyncio.create_task(world.ask(f"agent@{step}")) for step in (1, 2)]
        await asyncio.sleep(0.02)
        with pytest.raises(ApiError, match="SERVE_ADAPTERS"):
            await world.ask("agent@3")
        gate.set()
        assert await asyncio.gather(*asking) == ["agent@1", "agent@2"]
        assert await world.ask("agent@3") == "agent@3"

    run(test)


def test_who_finds_every_slot_in_use_for_a_moment_waits() -> None:
    """With more lineages than slots half of the requests of two clients were refused."""

    async def test() -> None:
        backend = FakeBackend()
        world = World([backend], slots=2)
        world.promoted = {"agent": 1, "other": 1, "third": 1}
        await world.follow()
        gate = backend.gate = asyncio.Event()
        asking = [asyncio.create_task(world.ask(name)) for name in ("other", "third")]
        await asyncio.sleep(0.1)
        gate.set()
        assert await asyncio.gather(*asking) == ["other@1", "third@1"]
        assert await world.ask("other") == "other@1"

    run(test)


def test_many_who_ask_for_a_version_load_it_once() -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.load_seconds = 0.05
        world = World([backend])
        await world.follow()
        await asyncio.gather(*(world.ask("agent@7") for _ in range(20)))
        assert backend.loads.count("agent@7") == 1

    run(test)


def test_a_share_takes_the_same_agents_each_time() -> None:
    async def test() -> None:
        world = World()
        world.promoted["agent"] = 3
        world.shares["agent"] = (5, 50.0)
        await world.follow()
        agents = [f"agent-{number}" for number in range(200)]
        first = {agent: await world.ask(agent=agent) for agent in agents}
        assert first == {agent: await world.ask(agent=agent) for agent in agents}
        assert 60 < sum(answer == "agent@5" for answer in first.values()) < 140
        assert set(first.values()) == {"agent@3", "agent@5"}
        assert await world.ask(agent=None) == "agent@3"
        world.shares.clear()
        await world.follow()
        assert {await world.ask(agent=agent) for agent in agents} == {"agent@3"}

    run(test)


def test_a_share_begins_with_its_window_on_every_replica() -> None:
    """By the database's clock, between two looks at the rows."""

    async def test() -> None:
        world = World()
        world.promoted["agent"] = 3
        world.shares["agent"] = (5, 100.0)
        world.share_starts_at = world.now + timedelta(seconds=1)
        await world.follow()
        assert await world.ask(agent="some") == "agent@3"
        assert version(5) in world.backends[0].has  # loaded before it begins
        directory = world.follower.directory
        world.follower.directory = replace(directory, at=directory.at + timedelta(seconds=1))
        assert await world.ask(agent="some") == "agent@5"

    run(test)


def test_a_share_that_failed_once_stays_out_for_its_window() -> None:
    async def test() -> None:
        world = World()
        world.promoted["agent"] = 3
        world.backends[0].cannot[version(5)] = "not there yet"
        world.shares["agent"] = (5, 100.0)
        await world.follow(3)
        assert await world.ask(agent="some") == "agent@3"
        world.backends[0].cannot.clear()
        world.loader.failures.clear()
        await world.follow(3)
        assert await world.ask(agent="some") == "agent@3"

    run(test)


def test_a_share_that_cannot_be_loaded_takes_nobody() -> None:
    async def test() -> None:
        world = World()
        world.promoted["agent"] = 3
        world.backends[0].cannot[version(5)] = "wrong rank"
        world.shares["agent"] = (5, 100.0)
        await world.follow(3)
        assert await world.ask(agent="some") == "agent@3"

    run(test)


def test_a_lineage_is_loaded_early_once_it_was_asked() -> None:
    async def test() -> None:
        world = World()
        world.promoted |= {"agent": 1, "other": 1}
        await world.follow()
        assert {each.lineage for each in world.backends[0].has} == {"agent"}
        assert await world.ask("other") == "other@1"
        world.promoted["other"] = 2
        await world.follow()
        assert version(2, "other") in world.backends[0].has

    run(test)


def test_more_lineages_than_slots_are_loaded_in_turn() -> None:
    async def test() -> None:
        world = World(slots=2)
        world.promoted = {f"agent{number}": 1 for number in range(6)}
        await world.follow()
        for _ in range(2):
            for name in world.promoted:
                assert await world.ask(name) == f"{name}@1"
                await world.follow()
        assert world.backends[0].most == 2
        assert len(world.backends[0].loads) <= 12  # looks alone load nothing again and again

    run(test)


def test_more_lineages_than_slots_leave_the_deployments_own_ready() -> None:
    """Else load balancers would take the endpoint away, and the other one likewise."""

    async def test() -> None:
        world = World(slots=2)
        world.promoted = {"agent": 3, "other": 1, "third": 2}
        await world.follow()
        for name in ("other", "third", "other", "third"):
            assert await world.ask(name) == f"{name}@{world.promoted[name]}"
            assert world.router.health().ready
            await world.follow()
        assert world.backends[0].loads.count("agent@3") == 1

    run(test)


def test_leaving_an_answer_stops_it() -> None:
    async def test() -> None:
        backend = FakeBackend()
        world = World([backend])
        await world.follow()
        backend.gate = asyncio.Event()
        async with world.router.ask(world.router.resolve("agent", None), ASKED) as answering:
            await anext(answering.chunks)
        assert backend.cancelled == 1
        assert backend.running == []

    run(test)


def test_what_a_backend_cannot_do_is_told_before_anything_is_asked() -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        question = Question("chat", {"tools": [{}]}, stream=True, captured=False)
        with pytest.raises(ApiError) as caught:
            async with world.router.ask(world.router.resolve("agent", None), question):
                pass
        assert (caught.value.status, caught.value.param) == (400, "tools")

    run(test)


def test_an_answer_that_is_not_streamed_is_one_object() -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        objects: list[dict[str, Any]] = []
        async with world.router.ask(world.router.resolve("agent", None), WHOLE) as answering:
            objects += [each async for each in answering.chunks]
        assert objects == [{"text": "agent@0" * 3, "by": "one"}]

    run(test)


def test_names_of_all_versions_are_listed() -> None:
    async def test() -> None:
        world = World()
        world.steps = 2
        await world.follow()
        names = ["agent", "agent@2", "agent-v1.0.2", "agent@1", "agent-v1.0.1", "agent@0"]
        assert world.router.models() == names

    run(test)


def test_what_is_listed_can_be_asked() -> None:
    async def test() -> None:
        world = World()
        await world.follow()
        found: list[Version] = [world.router.resolve(name, None) for name in world.router.models()]
        assert len(set(found)) == 13

    run(test)


def test_an_engine_without_tokens_is_silent_and_a_long_answer_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(router_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def test() -> None:
        one, two = FakeBackend("one"), FakeBackend("two")
        world = World([one, two])
        await world.follow()
        one.gate = two.gate = asyncio.Event()

        async def ask(question: Question) -> None:
            async with world.router.ask(world.router.resolve("agent", None), question) as answering:
                async for _ in answering.chunks:
                    pass

        async def asked(count: int) -> None:
            while one.at_gate + two.at_gate < count:
                await asyncio.sleep(0)
            clock[0] += 50.0

        asking = [asyncio.create_task(ask(WHOLE)) for _ in range(2)]
        await asked(2)
        await asked(2)
        asking.append(asyncio.create_task(ask(ASKED)))  # a stream joins a long whole answer
        await asked(3)
        assert world.router.silent() == {}
        await asked(3)
        assert world.router.silent() == {}  # the other backend is not known to be silent
        assert [each.why for each in world.router.health().problems] == [
            "no tokens come though requests wait"
        ]
        asking.append(asyncio.create_task(ask(ASKED)))
        await asked(4)
        await asked(4)
        assert set(world.router.silent()) == {"one", "two"}
        one.gate.set()
        await asyncio.gather(*asking)
        assert world.router.silent() == {}

    run(test)
