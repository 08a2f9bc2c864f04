"""A small world to break: servers, a network, roles and windows to train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.settings import Settings
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.work.context import Context
from tests import rows
from tests.chaos.fleet import Fleet, Kill
from tests.chaos.injection import Injection, injecting
from tests.chaos.links import Links
from tests.chaos.recovery import recoveries
from tests.chaos.servers import Servers
from tests.chaos.verdict import Verdict, judge, left_in
from tests.paths import lineage_rows

ROOT = Path(__file__).parents[2]
LOOKBACK_HOURS = 8000

# Short intervals, so that a recovery takes seconds; their proportions are the defaults'.
SETTINGS = {
    "LEASE_SECONDS": "2",
    "HEARTBEAT_SECONDS": "0.5",
    "SWEEP_SECONDS": "2",
    "PRODUCE_SECONDS": "2",
    "RETRY_SECONDS": "1",
    "TRAINER": "noop",
    "TRAIN_RL_LOCAL": "true",
    "BASE_MODEL": "none",
    "SETTLE_SECONDS": "0",
    "LOOKBACK_HOURS": str(LOOKBACK_HOURS),
    "PUBLISH": "always",  # most faults are about what happens before and after the gate
}

_AGENTS = [f"agent-{n}" for n in range(3)]
_STEPS = [rows.steps(300.0 * n - 200) for n in range(3)]
_TERMINAL = ["trained", "skipped", "failed"]


def command(name: str) -> tuple[str, ...]:
    """Return the command of a role by its name: `cpu1`, `gpu2`, `beat`, `flower`."""
    role = name.rstrip("0123456789")
    celery = ("celery", "-A", "babylon_tasks")
    if role in ("beat", "flower"):
        return (*celery, role)
    context = (*celery, "worker", "-Q", role, "-n", f"{name}@%h")
    return (*context, "-c", "1") if role == "cpu" else context


def _injecting(inject: Sequence[Injection]) -> dict[str, str]:
    return injecting(*inject, python_path=str(ROOT)) if inject else {}


class World(AbstractContextManager["World"]):
    """An empty database and an empty Redis on servers that many worlds share, and their roles.

    Roles reach the servers through `links`; `worker` is ours and goes straight to Postgres.
    `changes` are settings and other variables that the roles get.
    """

    def __init__(
        self, servers: Servers, folder: Path, changes: Mapping[str, str] | None = None
    ) -> None:
        servers.repair()
        servers.redis.flush()
        self.servers = servers
        self.folder = folder
        self._database_url = servers.fresh_database()
        settings = {**SETTINGS, "CHECKPOINT_STORE": str(folder / "checkpoints"), **(changes or {})}
        ours = {
            name.lower(): value
            for name, value in settings.items()
            if name.lower() in Settings.model_fields
        }
        self.settings = Settings(
            **{**ours, "database_url": self._database_url, "redis_url": servers.redis.url}  # type: ignore[arg-type]
        )
        self.context = Context.of_deployment(self.settings, "chaos:0")
        self.tmp = folder / "tmp"  # of all roles
        self.tmp.mkdir(exist_ok=True)
        self._all_links: list[Links] = []
        self.links = self.own_links()
        self.fleet = Fleet(folder, self._environment(settings))
        self.expected: dict[str, str] = {}
        self._now = datetime.now(UTC)
        self._next_hours_ago = 2

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fleet.stop_all()
        for links in self._all_links:
            links.close()
        self.servers.repair()
        self.context.database.close()
        self.servers.drop_database(self._database_url)

    def own_links(self) -> Links:
        """Make other links to the same servers, for a node that is cut off alone."""
        made = Links.to(self.servers.postgres.port, self.servers.redis.port)
        self._all_links.append(made)
        return made

    def start(
        self,
        name: str,
        *arguments: str,
        links: Links | None = None,
        inject: Sequence[Injection] = (),
        env: Mapping[str, str] | None = None,
        keep_running: bool = False,
    ) -> int:
        """Start a role by its name (`cpu1`), with more arguments if given, and return its pid.

        Any other process: `fleet.start`.
        """
        changes = (links or self.links).env(self._database_url, self.servers.redis.url)
        changes |= _injecting(inject)
        changes |= env or {}
        return self.fleet.start(
            name, *command(name), *arguments, env=changes, keep_running=keep_running
        )

    def key(self, name: str) -> str:
        """Return the key in Redis that Celery's roles here know by this name."""
        return key_prefix(self._database_url) + name

    def run(self, name: str, *command: str, inject: Sequence[Injection] = ()) -> int:
        """Run a program to its end or its death, and return its exit code."""
        self.fleet.start(name, *command, env=_injecting(inject))
        return self.fleet.wait(name)

    def add_windows(self, count: int, first_hours_ago: int | None = None) -> list[str]:
        """Add windows of three agents each, going back in time from where the last call ended.

        They are expected to be trained; change `expected` where another end is right.
        """
        windows = self.next_windows(count, first_hours_ago)
        with self.context.database.transaction() as tx:
            tx.execute(
                """INSERT INTO "User" (id, username, "updatedAt")
                   SELECT agent, agent, now() FROM unnest(%s::text[]) AS agent
                       ON CONFLICT DO NOTHING""",
                [_AGENTS],
            )
            tx.execute(
                """INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime",
                       "durationMs", "windowId", "scenarioId", "stepsJson", "rewardComponentsJson",
                       "metricsJson", "metadataJson", "totalReward", "episodeLength",
                       "finalStatus", "updatedAt")
                   SELECT w || '/' || agent, w || '/' || agent, agent, now(), now(), 1, w, w, steps,
                          '{}', '{}', '{}', 0, 3, 'completed', now()
                     FROM unnest(%s::text[]) AS w
                    CROSS JOIN unnest(%s::text[], %s::text[]) AS a (agent, steps)""",
                [windows, _AGENTS, _STEPS],
            )
        return windows

    def next_windows(self, count: int, first_hours_ago: int | None = None) -> list[str]:
        """Return only ids, for a test that fills the windows itself; they should be trained too."""
        first = self._next_hours_ago if first_hours_ago is None else first_hours_ago
        self._next_hours_ago = first + count
        assert self._next_hours_ago < LOOKBACK_HOURS, "nobody would look back so far"
        hours = range(first, first + count)
        windows = [window_id_at(self._now - timedelta(hours=hour)) for hour in hours]
        self.expected |= dict.fromkeys(windows, "trained")
        return windows

    def wait(self, condition: Callable[[], bool], seconds: float = 40) -> None:
        """Wait until a condition holds; without Postgres it does not hold.

        Raises:
            AssertionError: It did not hold in time; with the end of the roles' logs.
        """
        deadline = time.monotonic() + seconds
        while not self._holds(condition):
            if time.monotonic() > deadline:
                logs = self.fleet.logs()[-6000:]
                raise AssertionError(f"nothing happened within {seconds} s\n{logs}")
            time.sleep(0.1)

    def settled(self) -> bool:
        """Tell whether every window has ended in each lineage, and what may serve does.

        The head of a lineage with a gate waits for its exam, so for another window.
        """
        ended = rows.query(
            self.context,
            "SELECT model_name, window_id FROM rl.windows WHERE state = ANY (%s)",
            _TERMINAL,
        )
        pairs = {(row["model_name"], row["window_id"]) for row in ended}
        names = lineage_rows(self.context)
        if not all((name, window) in pairs for name in names for window in self.expected):
            return False
        return not rows.query(
            self.context,
            """SELECT FROM rl.heads h
                WHERE CASE WHEN NOT h.gated THEN h.step <> h.published_step
                           ELSE h.promotion_paused_at IS NULL
                            AND rl.candidate(h.model_name) IS NOT NULL
                            AND NOT EXISTS (SELECT FROM rl.experiments e
                                             WHERE e.model_name = h.model_name
                                               AND e.ended_at IS NULL) END""",
        )

    def verdict(self) -> Verdict:
        """Report what was lost, what was done twice, and every other broken invariant."""
        found = judge(self.context, self.expected)
        found.broken.extend(left_in(self.tmp))
        return found

    def invariants(self) -> Verdict:
        """Require that no invariant is broken, and return the verdict."""
        found = self.verdict()
        assert not found.broken, "\n".join(found.broken)
        return found

    def recoveries(self, kills: Sequence[Kill] | None = None) -> list[float]:
        """Return the seconds from each kill that lost an attempt to the window's next attempt."""
        return recoveries(self.context, self.fleet.kills if kills is None else kills)

    def attempts(self) -> dict[str, int]:
        """Count the attempts by their end."""
        found = rows.query(
            self.context,
            """SELECT coalesce(outcome, 'open') AS outcome, count(*)::int AS n
                 FROM rl.attempts GROUP BY 1 ORDER BY 1""",
        )
        return {row["outcome"]: row["n"] for row in found}

    def _holds(self, condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except ServerUnavailable:
            return False

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return every role's environment: ours, with these settings and no others."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        }
        offline = {"HF_HUB_OFFLINE": "1"}  # what is not on this machine is missed at once
        urls = self.links.env(self._database_url, self.servers.redis.url)
        ours = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.tmp)}
        return {**inherited, **ours, **settings, **offline, **urls}
