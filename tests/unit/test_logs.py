"""The log: one line an event, whatever it quotes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def logged(code: str, level: str = "INFO", **env: str) -> str:
    """What a program says on stderr after `configure_logging(level)`."""
    program = "import logging, sys\nfrom babylon_tasks.logs import configure_logging\n"
    program += f"configure_logging({level!r})\n"
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
    code = "import logging; from babylon_tasks.logs import configure_logging; "
    code += "configure_logging('INFO'); logging.getLogger('workers').error('x')"

    def on_terminal(**env: str) -> bytes:
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, env={**os.environ, **env}, check=True
        )
        os.close(theirs)
        said = os.read(ours, 4096)
        os.close(ours)
        return said

    assert b"\x1b[" in on_terminal()
    plain = on_terminal(NO_COLOR="1").decode().rstrip()
    assert re.fullmatch(TIME + " ERROR workers: x", plain)


def test_a_program_that_logs_nothing_does_not_import_structlog() -> None:
    assert logged("ours.debug('no'); assert 'structlog' not in sys.modules") == ""


def test_it_leaves_no_other_handler() -> None:
    code = "configure_logging('INFO'); assert len(logging.getLogger().handlers) == 1"
    assert logged(code + "; ours.info('once')").count("once") == 1
