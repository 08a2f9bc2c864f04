"""The documents: links lead somewhere, and paths and tests that they name are there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import babylon_tasks

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "deploy").glob("**/*.md")]
)
README_LINES = 150
GENERATED = ("settings.md", "cli.md")
ROOMS = "babylon_tasks|workers|tests|migrations|benchmarks|deploy|docs|scripts"

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS]
)


def prose(document: Path) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """What GitHub calls the headings: small letters, no punctuation, hyphens for spaces."""
    names: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(document), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def links(document: Path) -> list[str]:
    """Where the document's links and pictures lead, but not those into the web."""
    text = re.sub(r"`[^`\n]*`", "", prose(document))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def quoted(document: Path) -> list[str]:
    """What stands in backticks on one line."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in links(document):
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


@each_document
def test_paths_in_backticks_are_there(document: Path) -> None:
    named = [text for text in quoted(document) if re.fullmatch(rf"(?:{ROOMS})/[\w./-]*", text)]
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_document
def test_tests_in_backticks_are_there(document: Path) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("**/test_*.py"))
    named = [text for text in quoted(document) if re.fullmatch(r"test_\w+", text)]
    assert [name for name in named if f"def {name}(" not in tests] == []
    files = [text for text in quoted(document) if re.fullmatch(r"(?:\w+/)?test_\w+\.py", text)]
    assert [file for file in files if not list((ROOT / "tests").glob(f"**/{file}"))] == []


@each_document
def test_a_document_says_for_whom_it_is(document: Path) -> None:
    if document.parent != ROOT and document.name not in GENERATED:
        first = re.split(r"\n\s*\n", document.read_text(), maxsplit=2)[1]
        assert first.startswith("For ")


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_the_index_names_every_document(document: Path) -> None:
    assert document.name in [*links(ROOT / "docs" / "README.md"), "README.md"]


def test_the_package_says_what_is_public_and_imports_nothing() -> None:
    source = Path(str(babylon_tasks.__file__)).read_text()
    (only,) = ast.parse(source).body
    assert isinstance(only, ast.Expr)
    assert "Public and stable." in (babylon_tasks.__doc__ or "")


@pytest.mark.parametrize("package", ["babylon_tasks", "workers"])
def test_the_packages_carry_their_types(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def texts_of_the_program() -> str:
    """Every string of the packages, f-strings in pieces, and the queries, which write some."""
    found = []
    for room in ("babylon_tasks", "workers"):
        for path in (ROOT / room).glob("**/*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
        found += [path.read_text() for path in (ROOT / room).glob("**/*.sql")]
    return "\n".join(found)


# Where a message has a name or a number, a line has `…` or one of these.
EXAMPLES = (
    r"…|\b[\d.]+\b|'2025-1-15'|Redis at host:\S+|\.babylon\S+|LORA_RANK|SIGKILL|(?<=the trainer) "
)


def test_the_lines_to_look_up_are_the_programs_own() -> None:
    said = texts_of_the_program()
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    lines = [line for cell in cells for _, line in re.findall(r"(`+)(.+?)\1(?!`)", cell)]
    assert len(lines) > 80
    pieces = [part.strip(" :;,") for line in lines for part in re.split(EXAMPLES, line)]
    assert [piece for piece in pieces if " " in piece and piece not in said] == []
