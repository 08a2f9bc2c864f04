"""Flower's pages in a real browser while real workers train: what a person sees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis
from selenium import webdriver
from selenium.webdriver.common.by import By

from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.browser import browser
from tests.hostile import message
from tests.nginx import reverse_proxy
from tests.rows import add_window, hours_ago, query

pytestmark = pytest.mark.slow

CELERY = ("celery", "-A", "babylon_tasks")
WORKER = (*CELERY, "worker", "-c", "1")
LOGIN = ("watcher", "pass word")
WIDTH, PHONE = 1280, 390


class Page:
    """What a person sees in the browser."""

    def __init__(self, driver: webdriver.Chrome, deployment: Deployment) -> None:
        self.driver, self._wait = driver, deployment.wait

    def open(self, url: str, width: int = WIDTH) -> None:
        """Go to a page, in a window so wide."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.get(url)

    def text(self) -> str:
        """All text that is shown."""
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def wait_for(self, *texts: str) -> None:
        """Until all are shown, in small or capital letters."""
        self._wait(lambda: all(text.lower() in self.text().lower() for text in texts), seconds=20)

    def rows(self) -> list[list[str]]:
        """The rows of the table of tasks: started, name, state, result, runtime, worker."""
        script = """return [...document.querySelectorAll("#tasks-table tbody tr[id]")].map(
            row => [...row.cells].map(cell => cell.innerText))"""
        return [list(row) for row in self.driver.execute_script(script)]

    def row(self, name: str, matches: Callable[[list[str]], bool]) -> list[str]:
        """The newest row whose name begins so, once it is as asked."""
        found: list[list[str]] = []

        def there() -> bool:
            found[:] = [row for row in self.rows() if row[1].startswith(name) and matches(row)]
            return bool(found)

        self._wait(there, seconds=20)
        return found[0]

    def fits(self) -> None:
        """Nothing is wider than the window, nor a table wider than its frame."""
        wide = self.driver.execute_script("""
            return [document.documentElement, ...document.querySelectorAll(
              ".dataTables_scrollBody, .now-table, .table-responsive")]
              .filter(each => each.scrollWidth > each.clientWidth)
              .map(each => each.className + " " + each.scrollWidth + " > " + each.clientWidth)""")
        assert wide == []

    def complained(self) -> list[str]:
        """What went wrong in the page's scripts."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def held(gpu: psutil.Process) -> Iterator[None]:
    """The trainer stands still, so that the step is seen as it runs."""
    (trainer,) = (
        each for each in gpu.children(recursive=True) if "workers.trainer" in each.cmdline()
    )
    trainer.suspend()
    try:
        yield
    finally:
        trainer.resume()


def trains(deployment: Deployment) -> bool:
    """Whether a step is in its passes over the tokens."""
    rows = query(deployment.context, "SELECT doing FROM rl.leases WHERE doing IS NOT NULL")
    return any(row["doing"]["phase"] == "train" and row["doing"]["done"] for row in rows)


@pytest.mark.timeout(300)  # its set-up makes the tiny model, if no test before did
def test_a_person_sees_what_runs_how_far_it_is_and_what_came_of_it(
    deployment: Deployment, tmp_path: Path, tiny_model: Path
) -> None:
    """Behind a reverse proxy, logged in, on 1,280 pixels and on a phone."""
    for hours in (2, 3, 4):
        add_window(deployment.context, hours_ago(hours), agents=16)
    deployment.env |= {
        **{"TRAINER": "torch", "BASE_MODEL": str(tiny_model), "LEASE_SECONDS": "120"},
        **{"FLOWER_BASIC_AUTH": ":".join(LOGIN), "FLOWER_URL_PREFIX": "watch"},
    }
    port = free_port()
    deployment.start(*CELERY, "flower", f"--port={port}")
    gpu = deployment.start(*WORKER, "-Q", "gpu", "-n", "gpu@%h")
    deployment.start(*WORKER, "-Q", "cpu", "-n", "cpu@%h")
    with reverse_proxy(tmp_path, port, "/watch") as outside, browser(tmp_path) as driver:
        deployment.wait_for_page(f"{outside}/watch/healthcheck")
        with redis.Redis.from_url(deployment.redis_url) as client:
            bad = message("babylon.enqueue", [["2025-01-15T10:00"]], task_id="bad")
            client.lpush(deployment.key("cpu"), json.dumps(bad))
        deployment.call("babylon", "windows", "enqueue")
        deployment.wait(lambda: trains(deployment))
        page = Page(driver, deployment)
        site = outside.replace("://", f"://{quote(LOGIN[0])}:{quote(LOGIN[1])}@") + "/watch"
        with held(psutil.Process(gpu.pid)):
            look_at_now(page, site)
            look_at_tasks(page, site)
        done = page.row("train babylon-agent: step 1", lambda row: row[2] == "SUCCESS")
        assert "step 1 → v1.0.0: loss " in done[3]
        page.open(f"{site}/")
        page.wait_for("v1.0.0 (step 1) answers", "Last step: 1, v1.0.0, of 3 windows, 48 runs")
        page.open(f"{site}/broker")
        page.wait_for("cpu", "gpu", "0")
        assert page.complained() == []


def look_at_now(page: Page, site: str) -> None:
    """What runs and who works."""
    page.open(f"{site}/")
    page.wait_for(
        *("Training", "babylon-agent: step 1, 3 windows, 48 runs", "train, ", "tokens/s"),
        *("cpu@", "gpu@", "3 of them in work now", "the base model"),
    )
    bar = page.driver.find_element(By.CSS_SELECTOR, ".now-work [role=progressbar]")
    assert 0 < int(bar.get_attribute("aria-valuenow") or 0) < 100
    page.fits()
    page.open(f"{site}/", PHONE)
    page.wait_for("Training", "gpu@")
    page.fits()


def look_at_tasks(page: Page, site: str) -> None:
    """The step that runs, the windows that were scored, and the message that failed."""
    page.open(f"{site}/tasks")
    running = page.row("train babylon-agent: step 1, 3 windows, 48 runs", lambda row: row[3] != "")
    assert running[2] == "STARTED"
    assert "%" in running[3]
    assert re.fullmatch(r"\d+ s", running[4])  # so far
    assert running[5].startswith("gpu@")
    scored = page.row("score babylon-agent: 3 windows", lambda row: row[2] == "SUCCESS")
    assert scored[3] == "3 windows scored"
    failed = page.row("enqueue", lambda row: row[2] == "FAILURE")
    assert "no trajectories in window 2025-01-15T10:00" in failed[3]
    page.fits()
    page.driver.find_element(By.CSS_SELECTOR, "[data-task-state=FAILURE]").click()
    page.wait_for("no trajectories in window")
    page.row("enqueue", lambda row: len(page.rows()) == 1)
    page.driver.find_element(By.CSS_SELECTOR, "#tasks-table tbody a").click()
    page.wait_for("Task details", "no trajectories in window")
    page.driver.find_element(By.CSS_SELECTOR, ".task-name-value a").click()
    page.row("enqueue", lambda row: row[2] == "FAILURE")
    page.driver.find_element(By.CSS_SELECTOR, "[data-task-state='']").click()
