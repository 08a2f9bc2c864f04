"""Pictures of the demo as people see it, into docs/: `make screenshots`.

    python benchmarks/screenshots.py [--folder docs]

Runs `babylon demo --keep` in folders of its own, and takes, 1,280 pixels wide:

- `flower_now.png`, `flower_tasks.png` and `status_watch.png` while a step trains, of more agents
  than the demo has, so that it takes some seconds; the trainer is held meanwhile, so that all
  three show the same step;
- `demo_curve.png`: what the demo has printed at its end.

It needs Debian's packages chromium and chromium-driver. Look at the pictures before they are
committed: a person who never saw the system should see what it does, how far it is, and whether
that is good.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
from PIL import Image
from selenium import webdriver

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from babylon_tasks.settings import running
from tests.browser import browser

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH, LEAST_HEIGHT = 1280, 400
COLOURS = 128  # a picture of text needs no more, and is a third of the size
FIRST_STEP = 9  # there is something to see by then
AGENTS = 96
BABYLON = str(Path(sys.executable).with_name("babylon"))
# The holder of a lease says more often how far it is, and keeps it while the trainer is held.
ENV = {"HEARTBEAT_SECONDS": "0.3", "LEASE_SECONDS": "300"}
TRAINING = """SELECT 1 FROM rl.leases
 WHERE doing ->> 'stage' = 'train' AND (doing ->> 'step')::int >= %s
   AND doing ->> 'phase' = 'train' AND (doing ->> 'share')::float8 BETWEEN 0.3 AND 0.8
   AND (doing ?& '{loss,seconds_left}' OR (doing ->> 'step')::int >= %s)
   AND expires_at > rl.clock_timestamp() AND told_at >= acquired_at"""
TERMINAL = """<body style="margin:0;background:#16181d;color:#d8dee9;width:fit-content">
<pre style="margin:0;padding:28px 38px;font:25px/1.35 'DejaVu Sans Mono',monospace">{}</pre>"""
STYLES = {"1": "font-weight:bold", "31": "color:#ff7b72", "32": "color:#7ee787"}


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DOCS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    with tempfile.TemporaryDirectory() as place, browser(Path(place)) as driver:
        take_step(driver, folder)
        take_curve(driver, folder)


def take_step(driver: webdriver.Chrome, folder: Path) -> None:
    """Take the pictures of a step that trains."""
    with demo(f"--agents={AGENTS}") as (process, said):
        wait(lambda: re.search(r"Flower: (http\S+)", said()), process)
        site = re.findall(r"Flower: (http\S+)", said())[0]
        wait(lambda: running.read(), process)
        with held_step(running.read()["DATABASE_URL"], process):
            for name in ("now", "tasks"):
                driver.get(f"{site}/{'' if name == 'now' else name}")
                time.sleep(2.5)  # the page has refreshed itself
                save(driver, folder / f"flower_{name}.png")
            terminal(driver, in_terminal([BABYLON, "status"]), folder / "status_watch.png")


def take_curve(driver: webdriver.Chrome, folder: Path) -> None:
    """Take the picture of what the demo prints."""
    with demo() as (process, said):
        wait(lambda: "all of it runs until Ctrl-C" in said(), process)
        terminal(driver, curve(said()), folder / "demo_curve.png")


@contextlib.contextmanager
def demo(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run the demo in a new folder, which is the working folder meanwhile.

    Yields the process, and what gives all that it has printed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="babylon-screenshots-") as place,
        contextlib.chdir(place),
    ):
        printed = Path("demo.log")
        command = [BABYLON, "demo", "--keep", *options]
        with printed.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ENV}
            )
        try:
            yield process, printed.read_text
        finally:
            process.terminate()
            process.wait()


def wait(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until it holds, as long as the demo runs."""
    while not condition():
        if process.poll() is not None:
            sys.exit(f"the demo has ended:\n{Path('demo.log').read_text()}")
        time.sleep(0.05)


@contextlib.contextmanager
def held_step(database_url: str, demo: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hold a step while it trains."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for first in range(FIRST_STEP, 1000):

            def in_training(first: int = first) -> object:
                return connection.execute(TRAINING, [first, first + 3]).fetchone()

            wait(in_training, demo)
            children = psutil.Process(demo.pid).children(recursive=True)
            trainers = [each for each in children if trains(each, demo)]
            for trainer in trainers:
                trainer.suspend()
            time.sleep(1)  # what it said last is written
            if in_training():
                break
            for trainer in trainers:  # the step had ended by then
                trainer.resume()
    try:
        yield
    finally:
        for trainer in trainers:
            trainer.resume()


def trains(process: psutil.Process, demo: subprocess.Popen[bytes]) -> bool:
    """Whether it is the trainer of a worker; the demo has one of its own."""
    try:
        return "workers.trainer" in process.cmdline() and process.ppid() != demo.pid
    except psutil.Error:  # it has ended meanwhile
        return False


def in_terminal(command: list[str]) -> str:
    """Return what a command prints in a terminal, with its colours."""
    ours, its = pty.openpty()
    with subprocess.Popen(command, stdout=its):
        os.close(its)
        printed = b""
        with contextlib.suppress(OSError):  # it has closed its side
            while text := os.read(ours, 4096):
                printed += text
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def curve(said: str) -> str:
    """Return what the demo prints of its rounds."""
    lines = said.splitlines()
    first = next(n for n, line in enumerate(lines) if "on new markets" in line)
    last = next(n for n, line in enumerate(lines) if line.startswith("asked:"))
    return "$ make demo\n" + "\n".join(lines[first:last])


def terminal(driver: webdriver.Chrome, text: str, path: Path) -> None:
    """Save a picture of text as a dark terminal shows it."""
    spans = re.sub(
        r"\x1b\[([\d;]*)m",
        lambda found: (
            "</span>"
            if found[1] in ("", "0")
            else f'<span style="{";".join(STYLES.get(n, "") for n in found[1].split(";"))}">'
        ),
        html.escape(text.strip("\n"), quote=False),
    )
    page = Path("terminal.html")
    page.write_text(f'<!doctype html><meta charset="utf-8">{TERMINAL.format(spans)}')
    driver.set_window_size(WIDTH, LEAST_HEIGHT)
    driver.get(page.resolve().as_uri())
    save(driver, path)


def save(driver: webdriver.Chrome, path: Path) -> None:
    """Save the whole page, as wide as the window, with few colours."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {
            "width": WIDTH,
            "height": max(int(height), LEAST_HEIGHT),
            "deviceScaleFactor": 1,
            "mobile": False,
        },
    )
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.exit("no Chromium: apt-get install chromium chromium-driver")
    main()
