"""The figures of `benchmarks/gate.py`, from made-up trials."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its files import each other

import gate
from intervals import wilson


def record(kind: str, ended: str, worth: float | None = None, windows: int = 0) -> dict[str, Any]:
    return {
        "kind": kind, "ended": ended, "promoted": ended == "promoted", "windows": windows,
        "guards": ["lift"] if ended == "gate" else [], "worth": worth, "seconds": 1.0,
    }  # fmt: skip


def test_the_interval_of_a_share_by_hand() -> None:
    # z² = 3.8415. 0 of 4: middle and reach are z²/8 = 0.4802, scale 1 + z²/4 = 1.9604.
    assert wilson(0, 4) == pytest.approx((0.0, 0.9604 / 1.9604), abs=1e-4)
    # 2 of 4: 1.95996 * sqrt(0.25/4 + 3.8415/64) = 0.6860, by the scale 0.3500.
    assert wilson(2, 4) == pytest.approx((0.15, 0.85), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_what_came_to_serve_was_not_held_back() -> None:
    found = gate.figures(
        [
            record("honest", "undecided", 2.0, 24),
            record("honest", "promoted", 3.0, 6),
            record("honest", "gate", -1.0),
            record("negated", "gate", -3.0),
            record("negated", "harm", -2.0, 5),
            record("negated", "undecided", 0.5, 24),
            record("negated", "promoted", -0.5, 9),
            record("nan", "gate"),
            record("no_better", "failed agents", 0.0, 3),
            record("no_better", "promoted", 0.0, 3),
            record("limited_rate", "promoted", 2.0, 3),
        ],
        4,
    )
    assert found["held_back"] == {"negated": 0.75, "nan": 1.0}
    assert found["honest_passed"] == 0.667
    assert found["honest_promoted"] == 0.333
    assert found["false_promotions"] == 0.5
    assert found["trials"] == 4
    assert found["intervals"]["false_promotions"] == [round(b, 3) for b in wilson(1, 2)]
    negated = found["kinds"]["negated"]
    assert negated["ended"] == {"gate": 1, "harm": 1, "undecided": 1, "promoted": 1}
    assert (negated["guards"], negated["windows"], negated["worth"]) == ({"lift": 1}, 9, -1.25)
    assert negated["better"] == 1
    assert found["kinds"]["nan"]["worth"] is None


def test_what_misses_its_goal_is_said() -> None:
    found = {"held_back": {"negated": 0.94, "nan": 1.0}, "honest_passed": 0.8,
             "false_promotions": 0.06}  # fmt: skip
    missed = gate.goals(found)
    assert len(missed) == 2
    assert "negated" in missed[0]
    assert "false promotions" in missed[1]
    assert gate.goals({"held_back": {"nan": 1.0}}) == ["all goals are met"]
