"""Window ids, and which windows share a step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import (
    State,
    Window,
    due_at,
    parse_window_id,
    share_a_step,
    window_id_at,
)


def window(
    window_id: str,
    tokens: int,
    batch_id: str | None = None,
    attempts: int = 0,
    may_share: int | None = None,
) -> Window:
    return Window(
        window_id=window_id,
        state=State.SCORED,
        scoring=None,
        scorer="heuristic",
        score_rev=1,
        attempts=attempts,
        batch_id=batch_id,
        trained_step=None,
        agents=2,
        trajectories=2,
        late=0,
        text_bytes=(tokens - 1) * 4,
        may_share=may_share,
        reason=None,
        last_error=None,
    )


def ids(windows: list[Window]) -> str:
    return "".join(w.window_id for w in windows)


def test_a_window_id_is_the_hours_start_in_utc() -> None:
    assert parse_window_id("2025-01-15T10:00") == datetime(2025, 1, 15, 10, tzinfo=UTC)
    east = datetime(2025, 1, 15, 12, 59, tzinfo=timezone(timedelta(hours=2)))
    assert window_id_at(east) == "2025-01-15T10:00"
    assert due_at("2025-01-15T10:00", 600) == datetime(2025, 1, 15, 11, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "2025-01-15", "2025-01-15T10:30", "2025-13-15T10:00", "2025-01-15T24:00",
             "9999-12-31T23:00", "٢٠٢٥-01-15T10:00",
             "2025-01-15T10:00-btc", "x'; DROP TABLE trajectories; --"]
)  # fmt: skip
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(UserError, match="2025-01-15T10:00"):
        parse_window_id(text)


def test_windows_share_a_step_up_to_the_tokens() -> None:
    windows = [window("a", 40), window("b", 60), window("c", 1)]
    assert ids(share_a_step(windows, 100)) == "ab"
    assert ids(share_a_step(windows, 1000)) == "abc"


def test_one_window_larger_than_the_limit_still_trains() -> None:
    assert ids(share_a_step([window("a", 500), window("b", 1)], 100)) == "a"


def test_requests_and_windows_that_failed_train_alone() -> None:
    request, failed = window("a", 1, batch_id="batch-1"), window("b", 1, attempts=1)
    assert ids(share_a_step([request, window("c", 1)], 100)) == "a"
    assert ids(share_a_step([window("c", 1), failed], 100)) == "c"
    assert ids(share_a_step([failed, window("c", 1)], 100)) == "b"
    assert share_a_step([], 100) == []


def test_windows_that_failed_together_share_with_fewer() -> None:
    two = [window(name, 1, may_share=2) for name in "abc"]
    assert ids(share_a_step([*two, window("d", 1)], 100)) == "ab"
    assert ids(share_a_step([window("d", 1), *two], 100)) == "da"
    assert ids(share_a_step([*[window(n, 1) for n in "def"], *two], 100)) == "def"
    assert ids(share_a_step([window("d", 1), window("a", 1, may_share=1)], 100)) == "d"
    assert ids(share_a_step([window("a", 1, may_share=1), window("d", 1)], 100)) == "a"
