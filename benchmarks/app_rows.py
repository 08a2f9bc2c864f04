"""Fills the app's tables as in production: trajectories of many hours, the newest not vacuumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import sql

_ADD_AGENTS: LiteralString = """
INSERT INTO "User" ("id", "username", "isAgent", "updatedAt")
SELECT (190000000000000000 + n)::text, 'agent-' || n, true, now()
  FROM generate_series(0, %(agents)s::int - 1) AS n
"""

# In the order of time. Two in a hundred are older rows, with the window in scenarioId alone.
_ADD_TRAJECTORIES: LiteralString = """
INSERT INTO trajectories (
    "id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "scenarioId",
    "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward",
    "episodeLength", "finalStatus", "createdAt", "updatedAt")
SELECT (200000000000000000 + 2 * n)::text, (200000000000000001 + 2 * n)::text,
       (190000000000000000 + floor(random() * %(agents)s)::bigint)::text,
       hour, hour + interval '50 minutes', 3000000,
       CASE WHEN n %% 50 > 0 THEN to_char(hour, 'YYYY-MM-DD"T"HH24:00') END,
       to_char(hour, 'YYYY-MM-DD"T"HH24:00') || CASE WHEN n %% 50 = 0 THEN '-btc' ELSE '' END,
       replace(%(steps)s, '"PNL"', round((random() * 600 - 300)::numeric, 2)::text),
       '{}', '{}', '{}', 0, 3, 'completed',
       hour + interval '50 minutes', hour + interval '50 minutes'
  FROM generate_series(%(first)s::bigint, %(last)s::bigint - 1) AS n,
       LATERAL (SELECT %(oldest)s::timestamp
                       + make_interval(hours => (n * %(hours)s / %(total)s)::int)) AS h (hour)
"""

# Those that no constraint needs: rows of bulk come faster without them.
_INDEXES: LiteralString = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition
  FROM pg_index i
 WHERE i.indrelid = 'public.trajectories'::regclass AND NOT i.indisunique
"""


def steps_json(steps: int) -> str:
    """Make a short trace; each row gets its own number instead of "PNL"."""
    return json.dumps(
        [
            {
                "stepNumber": n,
                "environmentState": {"agentBalance": 10000, "agentPnL": "PNL", "openPositions": n},
                "providerAccesses": [],
                "llmCalls": [
                    {
                        "model": "llama-3.1-8b",
                        "systemPrompt": "You are a momentum trader on prediction markets.",
                        "userPrompt": "Market: NOVA beats its forecast. YES 0.42, NO 0.58. Act.",
                        "response": '{"action":"BUY_SHARES","side":"YES","amount":100}',
                        "purpose": "action",
                    }
                ],
                "action": {"actionType": "BUY_SHARES", "success": True},
                "reward": 0.5,
            }
            for n in range(steps)
        ]
    )


def load(
    url: str,
    trajectories: int,
    now: datetime,
    *,
    hours: int,
    steps: int = 3,
    bulk: bool = False,
) -> int:
    """Spread trajectories evenly over the hours up to now; return the number of agents.

    An agent has one trajectory in most hours. The newest tenth comes after the vacuum, as in a
    growing table with autovacuum. In bulk the indexes come after the rows, which is much faster and
    makes them denser than in production, and the newest 10,000 rows come after the vacuum.
    """
    agents = max(2, trajectories // hours)
    values = {
        "agents": agents,
        "total": trajectories,
        "hours": hours,
        "oldest": now.replace(minute=0, second=0, microsecond=0, tzinfo=None)
        - timedelta(hours=hours - 1),
        "steps": steps_json(steps),
    }
    vacuumed = trajectories - (10_000 if bulk else trajectories // 10)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # foreign keys unchecked
        connection.execute("ALTER TABLE trajectories SET (autovacuum_enabled = false)")
        connection.execute("SELECT setseed(0.5)")
        connection.execute(_ADD_AGENTS, values)
        with connection.transaction(), without_indexes(connection) if bulk else nullcontext():
            connection.execute(_ADD_TRAJECTORIES, {**values, "first": 0, "last": vacuumed})
        connection.execute('VACUUM ANALYZE trajectories, "User"')
        connection.execute(_ADD_TRAJECTORIES, {**values, "first": vacuumed, "last": trajectories})
        connection.execute("CHECKPOINT")
    return agents


@contextmanager
def without_indexes(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Empty the table, and build its indexes at the end; one transaction of it needs no log."""
    connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
    connection.execute("TRUNCATE trajectories CASCADE")
    indexes = connection.execute(_INDEXES).fetchall()
    for name, _ in indexes:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(name)))
    yield
    for _, definition in indexes:
        connection.execute(definition)
