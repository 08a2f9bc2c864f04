"""The rubric: upstream's weights, or a file of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from babylon_tasks.errors import UserError
from babylon_tasks.scoring.rubric import CRITERIA, load_rubric


def written(folder: Path, content: bytes) -> str:
    path = folder / "rubric.md"
    path.write_bytes(content)
    return str(path)


def test_the_default_has_upstreams_weights() -> None:
    rubric = load_rubric(None)
    for criterion, percent in [
        ("Profit", 40), ("Timing", 30), ("Risk", 20), ("Opportunity", 10)
    ]:  # fmt: skip
        assert f"{criterion}, {percent} %" in rubric.text
        assert CRITERIA[criterion.lower()] == percent / 100
    assert sum(CRITERIA.values()) == pytest.approx(1)
    assert rubric.criteria == CRITERIA


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rubric = load_rubric(written(tmp_path, "  Nur Gewinn zählt. 📈\n\n".encode()))
    assert rubric.text == "Nur Gewinn zählt. 📈"
    assert rubric.criteria is None
    assert load_rubric(written(tmp_path, b"\xef\xbb\xbfProfit.")).text == "Profit."


def test_the_hash_names_the_text(tmp_path: Path) -> None:
    first = load_rubric(written(tmp_path, b"Profit."))
    again = load_rubric(written(tmp_path, b"\nProfit.\n"))
    other = load_rubric(written(tmp_path, b"Profit!"))
    assert first.hash == again.hash
    assert len({first.hash, other.hash, load_rubric(None).hash}) == 3
    assert len(first.hash) == 16


def test_as_json_is_what_the_app_keeps(tmp_path: Path) -> None:
    default, own = load_rubric(None), load_rubric(written(tmp_path, b"Profit."))
    assert json.loads(default.as_json()) == {
        "rubric": default.hash,
        "criteria": CRITERIA,
        "text": default.text,
    }
    assert json.loads(own.as_json())["criteria"] is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty or longer than 65536 bytes"),
        (b" \n\t ", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"x" * 65_537, "longer than 65536 bytes"),
        # The 65,537th byte is the first half of a letter.
        (b"x" * 65_536 + "é".encode(), "longer than 65536 bytes"),
        ("é".encode("latin-1"), "UTF-8"),
        ("Profit".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_file_that_is_no_rubric(tmp_path: Path, content: bytes, why: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as error:
        load_rubric(path)
    assert why in str(error.value)
    assert f"JUDGE_RUBRIC={path}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_longest_file(tmp_path: Path) -> None:
    assert len(load_rubric(written(tmp_path, b"x" * 65_536)).text) == 65_536


@pytest.mark.parametrize("path", ["missing.md", ".", "/dev/zero"])
def test_a_path_that_is_no_file(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError) as error:
        load_rubric(str(tmp_path / path))
    assert "JUDGE_RUBRIC=" in str(error.value)
    assert "\n" not in str(error.value)
