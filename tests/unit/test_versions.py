"""Version numbers."""

from __future__ import annotations

import pytest

from babylon_tasks.records.versions import Versions, choose_version, parse_version


@pytest.mark.parametrize(
    ("requested", "taken", "expected"),
    [
        (None, [], "v1.0.0"),
        (None, ["v1.0.9", "v1.0.10", "v0.9.99"], "v1.0.11"),
        ("v1.0.1", ["v1.0.0"], "v1.0.1"),
        ("v1.0.0", ["v1.0.0"], "v1.0.1"),
        ("latest", ["v2.3.4"], "v2.3.5"),
        ("v1", [], "v1.0.0"),
        (None, ["nonsense", "v1.2"], "v1.0.0"),
        ("v999999999.9.9", ["v1.0.0"], "v1.0.1"),
        ("v٣.0.0", [], "v1.0.0"),
        ("v01.0.0", [], "v1.0.0"),
        (None, ["v1.0.999999", "v1.0.1000000"], "v1.0.1000001"),
        (None, ["v999999999.999999999.999999999"], "v1.0.0"),
    ],
)
def test_a_requested_version_only_if_it_is_free(
    requested: str | None, taken: list[str], expected: str
) -> None:
    assert choose_version(requested, taken) == expected


def test_parse() -> None:
    assert parse_version("v1.20.3") == (1, 20, 3)
    assert parse_version("v1.2.3-rc1") is None
    assert parse_version("1.2.3") is None


def test_a_step_has_three_names_in_a_trace_and_one_for_people() -> None:
    """The fork begins at step 2 of base; both have a version v1.0.1."""
    versions = Versions(
        "fork", {("base", "v1.0.0"): 1, ("base", "v1.0.1"): 2, ("fork", "v1.0.1"): 3}
    )
    names = {
        1: ("v1.0.0", "base-v1.0.0", "base@1", "fork@1"),  # the endpoint serves it as fork@1 too
        2: ("base-v1.0.1", "base@2", "fork@2"),
        3: ("v1.0.1", "fork-v1.0.1", "fork@3"),
        0: ("fork@0", "base@0"),
    }
    for step, of_step in names.items():
        assert [versions.step_of(name) for name in of_step] == [step] * len(of_step)
    for unknown in ("fork@4", "base@3", "other@1", "fork@01", "fork@", "@1", "v1.0.2", "", None):
        assert versions.step_of(unknown) is None
    assert [versions.name_of(step) for step in range(4)] == [
        "fork@0",
        "base-v1.0.0",
        "base-v1.0.1",
        "v1.0.1",
    ]
