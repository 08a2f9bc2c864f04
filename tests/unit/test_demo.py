"""What the demo shows and writes, and the hours that it plays."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from babylon_tasks.cli import demo, demo_screen
from babylon_tasks.cli.demo_loop import Game, crowd
from babylon_tasks.cli.demo_screen import Asked, Round, TrainedHour
from babylon_tasks.simulation.game.faults import faulty_rows
from babylon_tasks.simulation.game.look import Look
from babylon_tasks.simulation.game.market import UP, Rules
from babylon_tasks.simulation.game.personas import NOISE
from babylon_tasks.simulation.records import MALFORMED, NEVER_COUNTS

NOW = datetime(2026, 1, 4, 21, 30)
GAME = Game(seed=1, windows=14, players=crowd(32), now=NOW)
LOST = Look(policy=-123.45, noise=-1.25, oracle=42.69, well_formed=1.0, by_market=())
HOUR = TrainedHour("2026-01-04T19:00", 60, "v1.0.59", -12.34, 123.4)


def test_every_line_fits_80_columns() -> None:
    lines = [
        *demo_screen.first_lines(Round(LOST)).splitlines(),
        demo_screen.line(Round(LOST, HOUR)),
        *demo_screen.two_answers(Asked(GAME.questions()[0], "I think. " * 20, "")).splitlines(),
        *demo_screen.ended({"windows_expected": 60, "quarantined": 12, "windows_skipped": 1},
                           Path(".babylon/demo/summary.json")).splitlines(),
    ]  # fmt: skip
    assert [line for line in lines if len(line) > 80] == []


def test_a_line_shows_what_the_hour_made() -> None:
    look = Look(policy=20.72, noise=-1.25, oracle=42.69, well_formed=0.987, by_market=())
    shown = demo_screen.line(Round(look, TrainedHour("2026-01-04T19:00", 11, "v1.0.10", 0.03, 4.2)))
    # (20.72 + 1.25) / (42.69 + 1.25) = 21.97 / 43.94 = one half
    assert shown.split() == [
        "2026-01-04T19:00", "11", "v1.0.10", "20.72", "##########..........", "50%", "0.99", "0.03",
        "4.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("share", "filled"), [(-0.2, 0), (0.0, 0), (0.26, 5), (1.0, 20), (1.1, 20)]
)
def test_the_bar_reaches_from_noise_to_oracle(share: float, filled: int) -> None:
    assert demo_screen.bar(share) == "#" * filled + "." * (20 - filled)


def test_the_answers_stand_beside_what_they_are_worth() -> None:
    falls, _ = GAME.questions()
    shown = demo_screen.two_answers(Asked(falls, '{"action":"SELL"}', '{"action":')).splitlines()
    best = f"${falls.value(falls.best):.2f}"
    assert shown[-3].endswith(f"worth (at best {best})")
    assert shown[-2].split() == ["step", "0", '{"action":"SELL"}', best]
    assert shown[-1].endswith("$0.00: no action")


def test_the_questions_are_a_market_to_sell_and_one_to_buy() -> None:
    falls, rises = GAME.questions()
    assert falls.chance < 0.1
    assert rises.chance > 0.9
    assert (falls.best == UP, rises.best == UP) == (False, True)
    # In the hours after the lure the strong signals decide against both weak ones.
    assert [(m.signals["crowd"], m.signals["momentum"]) for m in (falls, rises)] == [
        (1, 1),
        (-1, -1),
    ]


def test_what_is_looked_at_is_the_market_after_the_last_hour() -> None:
    rules = Rules()
    for market in GAME.fresh_markets():
        odds = sum(weight * market.signals[name] for name, weight in rules.weights.items())
        assert (market.chance > 0.5) == (odds > 0)


def test_the_newest_hour_has_settled() -> None:
    ids = GAME.window_ids
    assert (len(ids), ids[0], ids[-1]) == (14, "2026-01-04T06:00", "2026-01-04T19:00")


@pytest.mark.parametrize("agents", [2, 3, 7, 32, 100])
def test_two_in_five_agents_are_the_model(agents: int) -> None:
    players = crowd(agents)
    assert [player.number for player in players] == list(range(agents))
    asked = sum(player.persona is None for player in players)
    assert asked == max(1, round(agents * 13 / 32))
    if agents == 32:
        assert sum(player.persona == NOISE for player in players) == 4


def test_the_summary_tells_of_learning() -> None:
    rounds = [
        Round(Look(5.0, -1.0, 43.0, 0.99, ())),
        Round(Look(21.0, -1.0, 43.0, 0.98, ()), HOUR),
    ]
    falls, _ = GAME.questions()
    told = demo.learning(rounds, Asked(falls, "BUY", "SELL"))
    assert told.pop("question").startswith("Will ")
    assert told == {
        "windows": 1, "policy": [5.0, 21.0], "noise": -1.0, "oracle": 43.0, "gap_closed": 0.5,
        "well_formed": [0.99, 0.98], "answer_before": "BUY", "answer_after": "SELL",
    }  # fmt: skip


def test_broken_rows_are_in_the_first_hour_and_before_it() -> None:
    rows = {rows.window_id: rows for rows in faulty_rows(GAME.start(0), GAME.seed)}
    assert {name: each.kind for name, each in rows.items()} == {
        "2026-01-04T04:00": "too_few",
        "2026-01-04T05:00": "no_signal",
        "2026-01-04T06:00": "good",
    }
    first = rows[GAME.window_ids[0]]
    assert set(first.malformed.values()) == set(MALFORMED)
    assert set(first.never_counts.values()) == set(NEVER_COUNTS)
    # No row of it is trained: the first hour is that of the game's agents alone.
    kept = {*first.malformed, *first.never_counts}
    assert {row.trajectory_id for row in first.trajectories} == kept
