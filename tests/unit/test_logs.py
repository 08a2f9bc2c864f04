"""The log: one line an event, whatever it quotes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from babylon_tasks import logs
from babylon_tasks.logs import bound
from babylon_tasks.work import aio

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def logged(code: str, level: str = "INFO", form: str = "console", **env: str) -> str:
    """What a program says on stderr after `configure_logging(level, form)`."""
    program = "import logging, sys\nfrom babylon_tasks.logs import bound, configure_logging\n"
    program += f"configure_logging({level!r}, {form!r})\n"
    program += "ours, theirs = map(logging.getLogger, ('workers.tasks', 'httpx'))\n" + code
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stdout
    return done.stderr


def test_a_line_says_when_how_grave_who_and_what() -> None:
    line = logged("ours.info('step %d of %s', 3, 'model')")
    assert re.fullmatch(TIME + r" INFO workers\.tasks: step 3 of model\n", line)


def test_third_parties_and_celerys_two_lines_a_task_only_warn() -> None:
    code = """
for name in ("workers", "babylon_tasks.pipeline", "celery.beat", "celery.app.trace", "httpx"):
    logging.getLogger(name).info("info of " + name)
    logging.getLogger(name).warning("warning of " + name)
"""
    said = [line.split(": ")[1] for line in logged(code).splitlines()]
    assert [line.split()[-1] for line in said if line.startswith("info")] == [
        "workers", "babylon_tasks.pipeline", "celery.beat",
    ]  # fmt: skip
    assert len([line for line in said if line.startswith("warning")]) == 5
    assert "DEBUG celery.app.trace: x" in logged(
        "logging.getLogger('celery.app.trace').debug('x')", level="DEBUG"
    )


def test_what_an_event_quotes_is_no_line_of_its_own_and_fills_no_disk() -> None:
    forged = "x\\n2026-01-01 00:00:00,000 ERROR forged\\x1b[2J\\x00\\ud800"
    code = f"""
for log in (ours, theirs):
    log.warning("refused %s", "{forged}")
    log.warning("{forged}")
    log.error("%s", "y" * 10_000_000)
    log.error({{"event": "no text"}})
"""
    lines = logged(code).splitlines()
    assert len(lines) == 8
    assert all(re.match(TIME + r" (WARNING|ERROR) (workers\.tasks|httpx): ", li) for li in lines)
    assert max(map(len, lines)) < 4100
    assert all(line.isprintable() for line in lines)


def test_a_traceback_is_that_of_logging() -> None:
    code = """
try:
    {}["missing"]
except KeyError:
    ours.exception("it\\nfailed")
ours.warning("here", stack_info=True)
"""
    first, *rest = logged(code).splitlines()
    assert first.endswith(" ERROR workers.tasks: it failed")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[2] == "KeyError: 'missing'"
    assert rest[3].endswith(" WARNING workers.tasks: here")
    assert rest[4] == "Stack (most recent call last):"
    assert "exc_info" not in "".join(rest)


def test_colours_are_for_terminals() -> None:
    code = "import logging; from babylon_tasks.logs import bound, configure_logging\n"
    code += "configure_logging('INFO')\nwith bound(step=3): logging.getLogger('workers').error('x')"

    def on_terminal(**env: str) -> bytes:
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, env={**os.environ, **env}, check=True
        )
        os.close(theirs)
        said = os.read(ours, 4096)
        os.close(ours)
        return said

    assert b"\x1b[2mstep=3\x1b[0m" in on_terminal()
    plain = on_terminal(NO_COLOR="1").decode().rstrip()
    assert re.fullmatch(TIME + " ERROR workers: x step=3", plain)


def test_a_program_that_logs_nothing_does_not_import_structlog() -> None:
    assert logged("ours.debug('no'); assert 'structlog' not in sys.modules") == ""


def test_it_leaves_no_other_handler() -> None:
    code = "configure_logging('INFO'); assert len(logging.getLogger().handlers) == 1"
    assert logged(code + "; ours.info('once')").count("once") == 1


# --- what a line is about ---


def test_fields_stand_after_the_event() -> None:
    code = """
with bound(lineage="a", step=None), bound(windows=["w1", "w2", "w3", "w4", "w5"], token=lambda: 7):
    ours.info("trains")
ours.info("rests")
"""
    first, second = logged(code).splitlines()
    assert first.endswith(" workers.tasks: trains lineage=a windows=w1,w2,w3+2 token=7")
    assert second.endswith(" workers.tasks: rests")


def test_one_json_object_a_line() -> None:
    code = """
with bound(lineage="a", windows=["w1", "w2", "w3", "w4"], token=lambda: 7):
    ours.info("trains %d", 3)
    try:
        {}["missing"]
    except KeyError:
        theirs.exception("failed")
ours.warning("here", stack_info=True)
"""
    lines = [json.loads(line) for line in logged(code, form="json").splitlines()]
    moment = datetime.fromisoformat(lines[0].pop("time"))
    assert moment.tzinfo == UTC
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    about = {"lineage": "a", "windows": ["w1", "w2", "w3", "w4"], "token": 7}
    assert lines[0] == {"level": "INFO", "logger": "workers.tasks", "event": "trains 3", **about}
    assert lines[1]["traceback"].startswith("Traceback (most recent call last):\n")
    assert lines[1]["traceback"].endswith("KeyError: 'missing'")
    assert {key: lines[1][key] for key in about} == about
    assert lines[2]["stack"].startswith("Stack (most recent call last):\n")
    assert len(lines) == 3


def test_nothing_forges_a_line_of_json_or_fills_a_disk() -> None:
    forged = r"x\n{level: ERROR}\x1b[2J\x00\ud800"
    code = f"""
with bound(lineage="{forged}"):
    for log in (ours, theirs):
        log.warning("refused %s", "{forged}")
        log.error({{"event": "no text"}})
        try:
            raise ValueError("{forged}" + "y" * 10_000_000)
        except ValueError:
            log.exception("it failed")
import warnings
warnings.warn("{forged}")
"""
    lines = logged(code, form="json").splitlines()
    assert len(lines) == 7
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert {json.loads(line)["level"] for line in lines} == {"WARNING", "ERROR"}
    assert max(map(len, lines)) < 2 * 16_000 + 4100
    (plain,) = logged(f"with bound(lineage='{forged}'): ours.info('x')").splitlines()
    assert plain.isprintable()


def test_json_has_no_colours_on_a_terminal() -> None:
    assert "\x1b" not in logged("ours.error('x')", form="json", FORCE_COLOR="1")


def test_each_task_has_fields_of_its_own() -> None:
    """And a loop that lives on takes the caller's, not those of its first caller."""

    async def one(window: str) -> dict[str, object]:
        with bound(window=window):
            await asyncio.sleep(0)
            return logs._bound_now()

    async def both() -> list[dict[str, object]]:
        return await asyncio.gather(one("w1"), one("w2"))

    for lineage in ("a", "b"):
        with bound(lineage=lineage):
            found = aio.run(both())
        assert found == [{"lineage": lineage, "window": "w1"}, {"lineage": lineage, "window": "w2"}]
    assert logs._bound_now() == {}


def test_an_error_takes_along_whose_work_it_was() -> None:
    """Where it is logged further up, with its traceback or as an argument."""
    code = """
try:
    with bound(lineage="a", token=lambda: 7):
        with bound(step=3):
            raise ValueError("no")
except ValueError as error:
    ours.error("%s: %s", "train", error)
    with bound(lineage="b"):
        ours.exception("it failed")
ours.error("%(x)s", {"x": 1})
ours.error("rests", exc_info=True)
"""
    first, *_ = logged(code).splitlines()
    assert first.endswith(" train: no lineage=a step=3 token=7")
    found = [json.loads(line) for line in logged(code, form="json").splitlines()]
    fields = [{key: line.get(key) for key in ("lineage", "step")} for line in found]
    nothing = {"lineage": None, "step": None}
    assert fields == [{"lineage": "a", "step": 3}, {"lineage": "b", "step": 3}, nothing, nothing]


def test_a_token_is_the_one_held_when_the_line_is_written() -> None:
    held = [1]
    with bound(token=lambda: held[0]):
        held[0] = 2
        assert logs._bound_now() == {"token": 2}
        with pytest.raises(ValueError, match="no"), bound(token=3):
            raise ValueError("no")
        assert logs._bound_now() == {"token": 2}
