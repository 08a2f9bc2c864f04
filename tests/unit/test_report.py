"""The report of the experiment: its statistics by hand, and docs/learning.md is what it makes."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # its files import each other

import recipe
import report
import tables
from intervals import interval, mean_curve, paired, student_t, windows_until
from records import by_name, failures

from babylon_tasks.settings import Settings

DOCS = recipe.RESULTS.parent


def run(part: str, name: str, seed: int, gaps: list[float], **more: Any) -> dict[str, Any]:
    """A record as `experiment.py` writes it; the oracle is worth a dollar, the noise nothing."""
    return {
        "part": part, "run": name, "name": name, "seed": seed, "windows": len(gaps) - 1,
        "flip_hour": None, "seconds": 10.0, "policy": gaps, "noise": 0.0, "oracle": 1.0,
        "gap_closed": gaps, "well_formed": [0.95] * len(gaps), "policy_change": [], "failed": [],
        **more,
    }  # fmt: skip


def test_an_interval_by_hand() -> None:
    """0.5, 0.6, 0.7, 0.8, 0.9: s^2 = (0.04 + 0.01 + 0 + 0.01 + 0.04) / 4 = 0.025."""
    mean, reach = interval([0.5, 0.6, 0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.7)
    assert reach == pytest.approx(2.776 * math.sqrt(0.025) / math.sqrt(5))
    assert interval([0.4]) == (0.4, math.inf)


def test_pairs_differ_by_less_than_their_values() -> None:
    """The differences are 1, 2 and 3: mean 2, s = 1, t(2) = 4.303."""
    mean, reach = paired([11.0, 52.0, -7.0], [10.0, 50.0, -10.0])
    assert mean == 2
    assert reach == pytest.approx(4.303 / math.sqrt(3))


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (4, 2.776), (10, 2.228), (11, 2.201), (20, 2.086), (63, 1.998), (1000, 1.962)],
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=0.001)


def test_how_soon_a_curve_is_somewhere() -> None:
    curve = [0.6, 0.2, 0.5, 0.9]
    assert windows_until(curve, 0.5) == 0
    assert windows_until(curve, 0.5, start=1) == 1  # look 2, one window after look 1
    assert windows_until(curve, 0.95) is None
    assert mean_curve([[0, 1, 2], [2, 3]]) == [1, 2]


def test_the_newest_of_the_same_run_counts_and_a_failed_one_is_named() -> None:
    failed = {**run("screen", "a", 1, []), "error": "Final: the gradients are not finite"}
    records = [run("screen", "a", 2, [0, 0.3]), run("screen", "a", 1, [0, 0.1]), failed,
               run("screen", "a", 1, [0, 0.2]), run("goals", "a", 1, [0, 1.0])]  # fmt: skip
    assert [one["gap_closed"][-1] for one in by_name(records, "screen")["a"]] == [0.2, 0.3]
    assert "a, seed 1, after 10 s: `Final: the gradients" in failures(records, "screen")
    assert "seed 1" in report.blocks([failed])["screen"]


def test_a_recipe_has_a_line_in_the_screen() -> None:
    runs = [run("screen", "a", seed, [0.1, 0.5, end]) for seed, end in enumerate((0.6, 0.8))]
    runs += [run("screen", "b", 0, [0.1, 0.2, 0.55]), run("screen", "b", 1, [0.1, 0.2, 0.3])]
    a, b = tables.screen(runs).splitlines()[2:4]
    # s^2 = (0.01 + 0.01) / 1, t(1) = 12.706: 12.706 * 0.1414 / 1.414 = 1.27
    assert a == "| a | 2 | 0.70 ± 1.27 | 0.60 | 0.950 | 1.0 | 5.0 |"
    assert b.endswith("| 0.30 | 0.950 | 2.0 (1 of 2) | 5.0 |")


@pytest.mark.parametrize(
    ("ends", "form", "said"),
    [
        ((0.7, 0.9, 0.8, 0.75, 0.4), 0.95, "**Met**"),
        ((0.7, 0.9, 0.8, 0.69, 0.4), 0.95, "**Missed**"),  # three seeds
        ((0.7, 0.9, 0.8, 0.75, 0.4), 0.89, "**Missed**"),
        ((0.7, 0.9, 0.8, 0.75, 0.1), 0.95, "**Missed**"),  # under its start
        ((0.7, 0.9, 0.8, 0.75), 0.95, "Not yet judged (4 of 5 seeds)"),
    ],
)
def test_the_first_goal(ends: tuple[float, ...], form: float, said: str) -> None:
    runs = [run("goals", "shipped", seed, [0.2, end], well_formed=[1.0, form])
            for seed, end in enumerate(ends)]  # fmt: skip
    assert said in tables.goals(runs)


def curve_with_half_at(window: int) -> list[float]:
    return [0.6 if at >= window else 0.2 for at in range(21)]


@pytest.mark.parametrize(
    ("others", "said"), [(12, "**Met**"), (11, "**Missed**"), (99, "**Met**: half of the gap")]
)
def test_half_as_many_windows_as_the_best_of_the_others(others: int, said: str) -> None:
    arms = {"shipped": 6, "upstream: conversation": 99, "ART's steps, its rate": others}
    runs = [run("compare", name, seed, curve_with_half_at(window))
            for name, window in arms.items() for seed in range(5)]  # fmt: skip
    assert said in tables.compare(runs)


@pytest.mark.parametrize(("again", "said"), [(18, "**Met**"), (19, "**Missed**")])
def test_a_flip_is_followed_within_six_windows(again: int, said: str) -> None:
    gaps = [0.8] * 12 + [-0.5] * (again - 12) + [0.5] * (21 - again)
    runs = [run("regimes", "flip", seed, gaps, flip_hour=12) for seed in range(5)]
    text = tables.regimes(runs)
    assert said in text
    assert f"| 0 | 0.80 | -0.50 | 0.50 | {again - 12} | 0.950 |" in text


def test_old_data_is_held_against_what_the_loop_gains() -> None:
    runs = [run("goals", "shipped", seed, [0.2, 0.8]) for seed in range(5)]
    runs += [run("regimes", "others only", seed, [0.2, 0.53]) for seed in range(5)]
    runs += [run("regimes", "six versions old", seed, [0.2, 0.44]) for seed in range(5)]
    text = tables.regimes(runs)
    assert "**Met**: others only: 0.33 of the gap gained, where the loop gains 0.60: 55%" in text
    assert "**Missed**: six versions old: 0.24 of the gap" in text


def test_absence_counts_the_seeds_of_both_rules() -> None:
    ends = {"left out": 0.7, "lowest score": 0.95}
    runs = [run("absence", name, seed, [0, 0.5], well_formed=[0.8, end], failed=[0.2])
            for name, end in ends.items() for seed in range(5)]  # fmt: skip
    text = tables.absence(runs)
    assert "**Met**: left out: learns to fail more in 5 of 5 seeds; the share that fails" in text
    assert "**Met**: lowest score: fails less than at its start in 5 of 5 seeds" in text
    assert "| lowest score | 4 | 0.20 | 0.05 | 0.20 | 0.50 |" in text


def test_the_real_model_is_held_against_its_base_market_by_market() -> None:
    """Differences 1, 2, 3 of seed 6: 2 - 4.303 / sqrt(3) < 0. Of seed 7: all 1, so sure."""
    base = [10.0, 50.0, -10.0]
    unsure = run("real", "real", 6, [0.2, 0.4], base_by_market=base,
                 policy_by_market=[11.0, 52.0, -7.0])  # fmt: skip
    sure = run("real", "real", 7, [0.2, 0.4], base_by_market=base,
               policy_by_market=[11.0, 51.0, -9.0])  # fmt: skip
    text = tables.real([unsure, sure])
    assert "| 16.67 | 18.67 | 2.00 ± 2.48 | 0.20 | 0.40 |" in text  # dollars of those markets
    assert "**Missed**: expected P&L is above the base model's with 95 % confidence in 1" in text
    assert "not stored" in tables.real([run("real", "real", 6, [0.2, 0.4])])


def test_a_run_that_raised_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(*_: object) -> list[dict[str, Any]]:
        raise RuntimeError("no\n  such thing")

    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "experiment", type("experiment", (), {"play": play}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results = tmp_path / "learning.jsonl"
    recipe.make(recipe.runs_of("goals")[:2], tmp_path, 1, results)
    first, second = recipe.read(results)
    assert (first["name"], first["error"]) == ("shipped", "RuntimeError: no such thing")
    assert second["seed"] == 7


def test_the_document_is_what_the_report_makes_of_the_records() -> None:
    """After `python benchmarks/recipe.py report`."""
    records = recipe.read(recipe.RESULTS)
    text = (DOCS / "learning.md").read_text()
    assert report.filled(text, report.blocks(records)) == text
    drawn = report.plots(records)
    there = {path.name: path.read_text() for path in DOCS.glob("learning_*.svg")}
    assert there == drawn


def test_the_markers_must_be_there() -> None:
    made = {"screen": "| a |", "real": ""}
    text = "<!-- screen -->\nold\n<!-- /screen -->\n<!-- real -->\nold\n<!-- /real -->\n"
    again = "<!-- screen -->\n| a |\n<!-- /screen -->\n<!-- real -->\n<!-- /real -->\n"
    assert report.filled(text, made) == again
    assert report.filled(again, made) == again
    with pytest.raises(ValueError, match="no <!-- goals -->"):
        report.filled(text, {"goals": ""})


def test_the_documents_recipe_is_the_shipped_one() -> None:
    text = (DOCS / "learning.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) > 8
    settings = Settings()
    for name, written in rows:
        value = getattr(settings, name.lower())
        shown = value if isinstance(value, str) else str(value).lower()
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:g}"
        if value is None:
            shown = "by the model's size"
        assert written.strip("` ") == shown, name
