"""What a person must see to, as `babylon status` and Flower say it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from babylon_tasks.cockpit.bad_news import bad_news
from babylon_tasks.settings import Settings

AT = datetime(2026, 1, 1, tzinfo=UTC)


def worker(name: str, lost: bool = False, up_seconds: float = 10.0) -> dict[str, Any]:
    return {
        **{"name": name, "queues": [name[:3]], "lost": lost, "seen_seconds": 100.0},
        "started_at": (AT - timedelta(seconds=up_seconds)).isoformat(),
    }


NOW: dict[str, Any] = {
    "at": AT,
    "model": "babylon-agent",
    "windows": {"due": 0, "scored": 0, "trained": 2, "skipped": 0, "failed": 0},
    "running": [],
    "workers": [worker("cpu@a"), worker("gpu@a")],
    "at_fault": {},
    "late_queues": ["gpu"],
    "busy_queues": [],
    "canary_age_seconds": {"cpu": 5.0, "gpu": None},
    "promotion_paused": {},
    "oldest_due": None,
    "oldest_scored": None,
    "last_step": {},
    "judge_today": {"usd": 4.0, "daily_limit_usd": 5.0},
    "lineages": [],
}
OTHER = {"name": "side", "state": "active", "failed": 0, "promotion_paused_at": None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, {}),
        ({"windows": {**NOW["windows"], "failed": 2}},
         {"failed": "2 windows failed: `babylon windows list` says why."}),
        ({"workers": NOW["workers"][:1]},
         {"no worker gpu": "No worker trains: start one with "
                           "`celery -A babylon_tasks worker -Q gpu`."}),
        ({"canary_age_seconds": {"cpu": 300.0, "gpu": 900.0}, "late_queues": ["cpu", "gpu"],
          "busy_queues": ["gpu"]},
         {"queue cpu": "No message has come through queue cpu for 5 min."}),
        ({"workers": [worker("cpu@a"), worker("gpu@a", up_seconds=300.0)]},
         {"queue gpu": "No message ever came through queue gpu: "
                       "does `celery -A babylon_tasks beat` run?"}),
        ({"workers": [*NOW["workers"], *(worker(f"cpu@{n}", lost=True) for n in range(5))]},
         {**{f"worker cpu@{n}": f"Worker cpu@{n} has said nothing for 1 min 40 s."
             for n in range(3)},
          "more workers": "Nor have 2 more workers said anything."}),
        ({"at_fault": {"a (train)": "no disk"}},
         {"at fault a (train)": "a (train) stopped, since every window failed there: no disk"}),
        ({"oldest_scored": {"window_id": "w", "seconds": 20.0, "last_error": "UserError: no room"}},
         {"scored": "Window w has waited 20 s after an error: UserError: no room."}),
        ({"oldest_due": {"window_id": "w", "seconds": 7200.0, "last_error": None}},
         {"due": "Window w has waited 2 h."}),
        ({"promotion_paused": {"since": "noon", "by": "alice", "why": "it lies"}},
         {"promotion": "No step is promoted by itself since noon, by alice: it lies "
                       "(`babylon models resume`)"}),
        ({"judge_today": {"usd": 5.0, "daily_limit_usd": 5.0}},
         {"judge": "The judge's daily limit is spent: judging goes on tomorrow, or when "
                   "JUDGE_DAILY_USD is raised."}),
        ({"last_step": {"stands_still": True}},
         {"last step": "The last step stood still: it moved the log-probability of an answer by "
                       "less than 0.001 nats; `babylon doctor` says which setting to change."}),
        ({"lineages": [{**OTHER, "failed": 1}, {**OTHER, "name": "old", "state": "retired",
                                                "failed": 1}]},
         {"lineage side": "Lineage side: 1 window failed."}),
        ({"lineages": [{**OTHER, "promotion_paused_at": AT}]},
         {"lineage side": "Lineage side: its promotion is paused."}),
    ],
)  # fmt: skip
def test_what_a_person_must_see_to_is_said(changes: dict[str, Any], says: dict[str, str]) -> None:
    assert bad_news({**NOW, **changes}, Settings()) == says
