"""All that a person asks first, of all lineages: what runs, what waits, who works, what it cost.

It reads Postgres only, in one transaction, and returns plain data: the terminal and Flower show it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from babylon_tasks.cockpit import running
from babylon_tasks.cockpit.bad_news import bad_news
from babylon_tasks.cockpit.status import late_seconds, lineage_status
from babylon_tasks.records.windows import State
from babylon_tasks.store import gpu_time, leases, lineages, promotions, workers
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import now
from babylon_tasks.work.context import Context


def overview(context: Context) -> dict[str, Any]:
    """Return the figures of `status.database_status`, and those of all lineages and workers.

    Times are those of the database's clock. Beside the keys of `database_status`:

    - `at`: when this was read.
    - `running`: who works on what, as `running.figures`, the oldest first.
    - `late_queues`: those through which no message came for too long, or never; this is no
      bad news for the `busy_queues`, whose work runs now.
    - `oldest_due`, `oldest_scored`: the lineage's window that waits the longest, or None.
    - `published`: what the lineage's name answers with: since when, by whom and why, or None.
    - `workers`: each worker as it says of itself; `lost` if it was silent for too long.
    - `gpu_today`: GPU seconds and dollars of the steps since 00:00 UTC, of all lineages.
    - `lineages`: every lineage with its steps, the number of its windows, and `running` work.
    - `bad_news`: what a person must see to, a sentence each, as `bad_news.bad_news`.

    Raises:
        ServerUnavailable: Postgres does not answer.
        UserError: A table, a column or a privilege is missing.
    """
    name = context.lineage.name
    with context.database.transaction() as tx:
        figures = lineage_status(tx, context)
        at = now(tx)
        works = running.in_order(leases.running(tx))
        oldest = window_rows.oldest_waiting(tx, name)
        moved = promotions.last_move(tx, name)
        seen = workers.read(tx)
        used = gpu_time.today(tx)
        listed = lineages.listing(tx)
    count = {each.name: sum(work.doing.lineage == each.name for work in works) for each in listed}
    shown = [running.figures(work, seen, at) for work in works]
    ages = figures["canary_age_seconds"].items()
    data = {
        "at": at,
        **figures,
        "running": shown,
        "busy_queues": sorted({work["queue"] for work in shown}),
        "late_queues": [
            queue
            for queue, age in ages
            if age is None or age > late_seconds(context.settings, queue)
        ],
        "oldest_due": asdict(oldest[State.DUE]) if State.DUE in oldest else None,
        "oldest_scored": asdict(oldest[State.SCORED]) if State.SCORED in oldest else None,
        "published": asdict(moved) if moved else None,
        "workers": [{**msgspec.to_builtins(each), "lost": each.lost} for each in seen],
        "gpu_today": asdict(used),
        "lineages": [{**asdict(each), "running": count[each.name]} for each in listed],
    }
    return {**data, "bad_news": bad_news(data, context.settings)}
