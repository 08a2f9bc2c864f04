"""Debian's Chromium without a screen, to look at pages as people see them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.missing import missing

WIDTH = 1280


@contextmanager
def browser(folder: Path, height: int = 900) -> Iterator[webdriver.Chrome]:
    """Open a window 1,280 pixels wide; without Chromium a test skips, and fails in CI.

    Its profile is a folder of its own, and it asks nobody but the pages that it is sent to.
    """
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        missing("no Chromium: apt-get install chromium chromium-driver (.ci/run does so)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic"),
        *("no-first-run", "disable-background-networking", "disable-component-update"),
        *("disable-sync", "hide-scrollbars", f"window-size={WIDTH},{height}"),
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, Service(str(programs[1])))
    try:
        yield driver
    finally:
        driver.quit()
