"""A window: one hour of the game; its trajectories form a group, since all saw the same market.

Its id is the hour's start in UTC, `YYYY-MM-DDTHH:00`. A window moves through the states
due → scored → trained | skipped | failed, one row of `rl.windows` a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from babylon_tasks.errors import UserError

_WINDOW_ID = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00")
_LAST_YEAR = 9000  # later, the end of a window may overflow the range of dates


class State(StrEnum):
    """The states of a window; the last three are terminal."""

    DUE = "due"
    SCORED = "scored"
    TRAINED = "trained"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Window:
    """A row of `rl.windows`.

    `scoring` names the scorer to use, if a person chose one; `scorer` names the scorer that was
    used. `may_share` is the largest number of windows in its step, None for any number.
    """

    window_id: str
    state: State
    scoring: str | None
    scorer: str | None
    score_rev: int
    attempts: int
    batch_id: str | None
    trained_step: int | None
    agents: int
    trajectories: int
    late: int
    text_bytes: int
    may_share: int | None
    reason: str | None
    last_error: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", State(self.state))

    @property
    def estimated_tokens(self) -> int:
        """Tokens of the window's prompts and responses, at four bytes a token."""
        return self.text_bytes // 4 + 1

    def scorer_to_use(self, by_setting: str) -> str:
        """Return the scorer's name: the one chosen by hand, else that of SCORING."""
        return self.scoring or by_setting

    @property
    def trains_alone(self) -> bool:
        """Whether it may not share a step.

        The app looks for a model of its own request alone, and a window that failed once must not
        make others fail.
        """
        return self.batch_id is not None or self.attempts > 0 or self.may_share == 1


@dataclass(frozen=True, slots=True)
class WindowListing:
    """One line of `babylon windows list`.

    `state` is a `State`. A window without a row is `open` (its hour has not ended), `settling`
    (ended, but slow agents may still write), `few_agents`, or `ready` (not produced yet).
    """

    window_id: str
    agents: int
    trajectories: int
    late: int
    state: str
    trained_step: int | None
    reason: str | None

    @property
    def can_train(self) -> bool:
        """Whether a step could take it now, once it is scored."""
        return self.state in ("ready", State.DUE, State.SCORED)


@dataclass(frozen=True, slots=True)
class WindowReport:
    """A window's result: scores in [0, 1], and its step's loss and wall time in seconds."""

    window_id: str
    state: str
    agents: int
    trajectories: int
    quarantined: int
    mean_score: float | None
    reward_spread: float | None
    step: int | None
    loss: float | None
    seconds: float | None
    reason: str | None


def parse_window_id(text: str) -> datetime:
    """Return the start of a window, in UTC.

    Raises:
        UserError: The text is no window id; the message shows the form.
    """
    if _WINDOW_ID.fullmatch(text):
        try:
            start = datetime.strptime(text, "%Y-%m-%dT%H:00").replace(tzinfo=UTC)
        except ValueError:
            start = None
        if start is not None and start.year <= _LAST_YEAR:
            return start
    raise UserError(
        f"{text!r} is not a window id: write the hour's start in UTC, as 2025-01-15T10:00"
    )


def window_id_at(moment: datetime) -> str:
    """Return the id of the window that a moment (with a time zone) falls into."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:00")


def due_at(window_id: str, settle_seconds: int) -> datetime:
    """Return the moment, in UTC, at which a window has ended and settled.

    Raises:
        UserError: The text is no window id.
    """
    return parse_window_id(window_id) + timedelta(hours=1, seconds=settle_seconds)


def share_a_step(windows: list[Window], max_tokens: int) -> list[Window]:
    """Return the first windows, in the given order, that fit into one step.

    At least one if there is any; a window that trains alone is returned alone.
    """
    chosen: list[Window] = []
    tokens = 0
    places = len(windows)
    for window in windows:
        places = min(places, window.may_share or places)
        full = len(chosen) >= places or tokens + window.estimated_tokens > max_tokens
        if chosen and (window.trains_alone or full):
            break
        chosen.append(window)
        tokens += window.estimated_tokens
        if window.trains_alone:
            break
    return chosen
