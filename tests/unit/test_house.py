"""The size of rooms: what a reader has to hold in mind at once."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for room in ("babylon_tasks", "workers") for path in (ROOT / room).rglob("*.py")
)
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 6  # beyond self; what needs more takes a record
MOST_LINES_OF_A_FILE = 350
MEDIAN_LINES_OF_A_FILE = 100
MOST_LINES_OF_THE_PIPELINE = 150


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_files_and_functions_are_small() -> None:
    too_large = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if lines(path) > MOST_LINES_OF_A_FILE:
            too_large.append(f"{name}: {lines(path)} lines")
        for function in functions(path):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > MOST_LINES_OF_A_FUNCTION:
                too_large.append(f"{name}: {function.name} has {length} lines")
            if parameters(function) > MOST_PARAMETERS:
                too_large.append(f"{name}: {function.name} has {parameters(function)} parameters")
    assert too_large == []


def test_most_files_are_read_on_two_screens() -> None:
    sizes = [lines(path) for path in FILES if lines(path) > 1]
    assert statistics.median(sizes) <= MEDIAN_LINES_OF_A_FILE


def test_the_flow_is_read_at_once() -> None:
    assert lines(ROOT / "babylon_tasks/pipeline.py") <= MOST_LINES_OF_THE_PIPELINE
