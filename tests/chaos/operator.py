"""A person who changes lineages while all roles run, and whose commands die half-way, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.work.context import Context
from tests.chaos.injection import Injection
from tests.chaos.world import World
from tests.rows import one, query

_PATIENCE_SECONDS = 120.0


class Operator:
    """Types commands until the database says that they are done, as a person would.

    It has a connection of its own, so that it may work in a thread beside the world's.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._context = Context.of_deployment(world.settings, "operator:0")

    def close(self) -> None:
        """Close the connection."""
        self._context.database.close()

    def create(self, *names: str, settings: Sequence[str] = ()) -> None:
        """Create lineages that every worker serves, each with these settings, `KEY=VALUE`."""
        options = [word for setting in settings for word in ("--set", setting)]
        for name in names:
            self._until(partial(self._lineage, name), "lineages", "create", name, *options)

    def fork(self, origin: str, name: str) -> None:
        """Fork a lineage, named as `babylon lineages fork` wants it."""
        self._until(partial(self._lineage, name), "lineages", "fork", origin, name)

    def reset(self, to_step: int) -> list[int]:
        """Move the head of MODEL_NAME; return the steps that this gave up.

        The first command is killed inside its transaction, the second one after its commit, while
        it holds the lease.
        """
        self._until(
            lambda: bool(query(self._context, "SELECT FROM rl.resets WHERE to_step = %s", to_step)),
            "models", "reset", str(to_step), "--why", "chaos",
            killed=[
                self._kill("babylon_tasks.store.heads.move", "after"),
                self._kill("babylon_tasks.work.leases.LeaseKeeper.__exit__", "before"),
            ],
        )  # fmt: skip
        given_up = query(
            self._context,
            """SELECT step FROM rl.steps
                WHERE model_name = %s AND given_up_at IS NOT NULL ORDER BY step""",
            self._context.lineage.name,
        )
        return [row["step"] for row in given_up]

    def retry(self, steps: Sequence[int]) -> None:
        """Make the windows of these steps due again; killed once inside the transaction."""
        named = [word for step in steps for word in ("--step", str(step))]
        self._until(
            lambda: not query(
                self._context,
                """SELECT FROM rl.windows
                    WHERE model_name = %s AND state = 'trained' AND trained_step = ANY (%s)""",
                self._context.lineage.name,
                list(steps),
            ),
            "windows", "retry", *named,
            killed=[self._kill("babylon_tasks.store.transitions.retry_step", "after")],
        )  # fmt: skip

    def head(self, at_least: int = 0) -> int:
        """Return the step of MODEL_NAME's head, once it is so far."""
        text = "SELECT step FROM rl.heads WHERE model_name = %s"
        name = self._context.lineage.name
        self._wait(lambda: one(self._context, text, name)["step"] >= at_least)
        return int(one(self._context, text, name)["step"])

    def _lineage(self, name: str) -> bool:
        return bool(query(self._context, "SELECT FROM rl.lineages WHERE name = %s", name))

    def _kill(self, call: str, at: Literal["before", "after"]) -> Injection:
        return Injection(call, "kill", at=at, once=self._world.folder / f"killed {at} {call}")

    def _until(
        self, done: Callable[[], bool], *command: str, killed: Sequence[Injection] = ()
    ) -> None:
        """Type the command until it is done; every death that is asked for must have come."""

        def typed() -> bool:
            self._world.run("operator", "babylon", *command, inject=killed)
            return done()

        self._wait(typed)
        assert all(kill.once and kill.once.exists() for kill in killed)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if condition():
                    return
            except ServerUnavailable:
                pass
            assert time.monotonic() < deadline, self._world.fleet.logs()[-6000:]
            time.sleep(0.1)
