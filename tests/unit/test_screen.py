"""Screens of 80 columns: what is wrapped, what is red, and how figures are written."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.table import Table

from babylon_tasks.cli.common import wide_console
from babylon_tasks.cli.lines import tokens_line
from babylon_tasks.cli.screen import COLUMNS, Line, Section, dollars, write
from babylon_tasks.words import counted, duration, loss_text, memory, named, size


def test_a_long_text_is_wrapped_below_itself_and_a_path_is_not() -> None:
    words, path = "word " * 30, "/a-folder" * 12
    lines = write(
        [Section("Title", [Line("label", words), Line("files", path, whole=True)])], colour=False
    ).splitlines()
    assert lines[0] == "Title"
    assert lines[1].startswith("  label        word word")
    assert lines[2].startswith("               word")
    assert all(len(line) <= COLUMNS for line in lines[:-1])
    assert lines[-1] == f"  files        {path}"


def test_only_bad_lines_are_red() -> None:
    sections = [Section("Title", [Line("a", "well"), Line("b", "ill", bad=True)])]
    assert write(sections, colour=True) == (
        "\x1b[1mTitle\x1b[0m\n  a            well\n\x1b[31m  b            ill\x1b[0m"
    )
    assert "\x1b" not in write(sections, colour=False)


def test_text_of_others_moves_no_cursor_and_forges_no_line() -> None:
    text = write([Section("", [Line("error", "a\x1b[2Jb\nWorkers\n  none")])], colour=False)
    assert text == "\n  error        a\ufffd[2Jb Workers none"


def test_an_empty_text_leaves_the_label() -> None:
    assert write([Section("Title", [Line("label", "")])], colour=False) == "Title\n  label"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (599, "9 min 59 s"),
     (601, "10 min"), (7199, "1 h 59 min"), (7200, "2 h"),
     (100_000, "27 h 46 min"), (172_800, "2 days")],
)  # fmt: skip
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_figures() -> None:
    assert [size(n) for n in (0, 1023, 2048, 5 << 20, 3 << 30)] == [
        "0 bytes", "1023 bytes", "2 KiB", "5 MiB", "3.0 GiB",
    ]  # fmt: skip
    assert [dollars(usd) for usd in (0, 0.0012, 0.01, 1234.5)] == [
        "$0.00", "$0.0012", "$0.01", "$1,234.50",
    ]  # fmt: skip
    assert [loss_text(loss) for loss in (None, -0.0, 0.01234, -0.0000251, 2.73261)] == [
        "not known", "0", "0.01234", "-2.51e-05", "2.733",
    ]  # fmt: skip
    assert [memory(used, 3 << 30) for used in (1 << 30, None)] == [
        "1.0 GiB of 3.0 GiB of memory used", "3.0 GiB of memory",
    ]  # fmt: skip
    assert [memory(used, None) for used in (1 << 30, None)] == [
        "1.0 GiB of memory used", "memory not known",
    ]  # fmt: skip
    assert [counted(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert [named(ids) for ids in ("a", "abc", "abcd")] == ["a", "a b c", "a b c …"]


@pytest.mark.parametrize(
    ("mfu", "gpu_seconds", "ends"),
    [(0.4, 30.0, "; 40.0% of the GPU's peak rate (MFU)"), (0.4, 0.0, ""), (None, 30.0, "")],
)
def test_the_share_of_the_peak_rate_is_shown_of_a_gpu_alone(
    mfu: float | None, gpu_seconds: float, ends: str
) -> None:
    text = tokens_line(190_000, 12_000, 6333.0, mfu, gpu_seconds).text
    assert text == (
        "190,000 context tokens, 12,000 trained tokens; 6,333 context tokens a second of computing"
        + ends
    )


def test_wide_letters_take_two_columns() -> None:
    lines = write([Section("", [Line("error", "漢字ワイド" * 20)])], colour=False).splitlines()
    assert all(cell_len(line) <= COLUMNS for line in lines)
    assert "".join("".join(lines).split()) == "error" + "漢字ワイド" * 20


def test_a_name_of_others_as_a_label_or_title_is_shown_as_plain_text() -> None:
    text = write([Section("a\x1b[2J", [Line("b\nc\x9b1m", "", bad=True)])], colour=False)
    assert text == "a\ufffd[2J\n  b c\ufffd1m"


def test_a_table_shows_text_of_others_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("reason")
    table.add_row("a\x1b[2J\u202eb [red]c\nd")
    wide_console().print(table)
    assert "a\ufffd[2J\ufffdb [red]c d" in capsys.readouterr().out
