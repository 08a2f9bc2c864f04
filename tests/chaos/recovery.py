"""How long the work of killed processes lay idle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from babylon_tasks.work.context import Context
from tests.chaos.fleet import Kill
from tests.rows import query

_LOST = """
SELECT lost.holder, lost.started_at, next.started_at AS next_at
  FROM rl.attempts lost
 CROSS JOIN LATERAL (
       SELECT n.started_at FROM rl.attempts n
        WHERE n.model_name = lost.model_name AND n.window_id = lost.window_id
          AND n.stage = lost.stage AND n.holder <> lost.holder
          AND n.started_at > lost.started_at
        ORDER BY n.started_at LIMIT 1) next
 WHERE lost.outcome = 'lost'
 ORDER BY lost.started_at
"""


def recoveries(context: Context, kills: Sequence[Kill]) -> list[float]:
    """Return the seconds from each kill that lost an attempt to another one's next attempt.

    The kill is the one of the holder's own process, else (a server's death, which may cost a lease
    too) the first that hit no process of ours while the attempt was under way.
    """
    found = []
    for row in query(context, _LOST):
        at = _killed_at(row["holder"], row["started_at"], row["next_at"], kills)
        if at is not None:
            found.append((row["next_at"] - at).total_seconds())
    return found


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest rank: the smallest value that `share` of the values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def _killed_at(
    holder: str, started_at: datetime, next_at: datetime, kills: Sequence[Kill]
) -> datetime | None:
    meanwhile = [kill for kill in kills if started_at <= kill.at < next_at]
    pid = int(holder.rpartition(":")[2])
    own = [kill.at for kill in meanwhile if pid in kill.pids]
    servers = [kill.at for kill in meanwhile if not kill.pids]
    return next(iter(own + servers), None)
