"""A day of operation in fast motion: what Flower and `babylon status` say while things go wrong.

    python benchmarks/day.py [--pace 8] [--folder .babylon/day]

All roles run on embedded servers, with a tiny model, a judge over HTTP (the tests' local server)
and the gate. Every `--pace` seconds an hour of the simulated market is played, 24 in all:

- hours 6 and 7: the judge is overloaded (503);
- hours 11 and 12: the disk of the checkpoints is full (a small tmpfs; it needs root to mount one);
- hour 17: one step is trained with a learning rate far too high, and without its limit.

After each hour `babylon status` and Flower's list of tasks are written into `--folder`, for a
person who reads them and says what happened: docs/watching.md has what was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from babylon_tasks.cli.demo_loop import Game, crowd
from babylon_tasks.local.ports import free_port
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.simulation.game.hour import Answer, play_hour
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.simulation.write import write
from babylon_tasks.store.migrate import migrate
from tests.judge_server import JudgeServer, good, overloaded

HOURS, AGENTS, SEED = 24, 32, 1
JUDGE_FAILS = range(6, 8)
DISK_IS_FULL = range(11, 13)
BAD_STEP = 17
BAD = ("LEARNING_RATE=0.9", "PASSES=8", "MAX_POLICY_CHANGE=1000")
GOOD = ("LEARNING_RATE=", "PASSES=", "MAX_POLICY_CHANGE=")
LAST_SECONDS = 60.0  # for what still waits after the last hour


def main() -> None:
    """Live through the day."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pace", type=float, default=8.0, help="seconds an hour")
    parser.add_argument("--folder", type=Path, default=Path(".babylon/day"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(embedded_postgres(folder / "postgres", "day", []))
        redis = stack.enter_context(embedded_redis(folder / "redis", []))
        migrate(postgres)
        judge = stack.enter_context(JudgeServer(delay_seconds=0.2))
        disk = stack.enter_context(small_disk(folder / "checkpoints"))
        make_tiny_model(folder / "base-model")
        env = environment(folder, postgres, redis, judge.url)
        port = free_port()
        running = stack.enter_context(Stack(roles(port), folder / "logs", env))
        day = Day(folder, env, f"http://127.0.0.1:{port}", judge, disk)
        app = stack.enter_context(psycopg.connect(postgres, autocommit=True))
        game = Game(SEED, HOURS, crowd(AGENTS), datetime.now(UTC).replace(tzinfo=None))
        for hour in range(HOURS):
            ends_at = time.monotonic() + arguments.pace
            day.before(hour)
            played = play_hour(SEED, hour, game.rules, game.players, scripted)
            write(app, [record(played, game.start(hour), SEED)])
            while time.monotonic() < ends_at:
                running.keep_running()
                time.sleep(0.2)
            day.look(hour)
        time.sleep(LAST_SECONDS)
        day.look(HOURS)


def environment(folder: Path, postgres: str, redis: str, judge: str) -> dict[str, str]:
    """Settings of all roles: as shipped, but for what a day of minutes needs."""
    return {
        "DATABASE_URL": postgres,
        "REDIS_URL": redis,
        "TRAIN_RL_LOCAL": "true",
        "TRAINER": "torch",
        "BASE_MODEL": str(folder / "base-model"),
        "CHECKPOINT_STORE": str(folder / "checkpoints"),
        "SCORING": "blend",
        "JUDGE_MODEL": "openai/judge",
        "JUDGE_BASE_URL": judge,
        "OPENAI_API_KEY": "none",
        "EXPERIMENT_PERCENT": "0",  # its windows would outlast the day: the exam alone decides
        "LOOKBACK_HOURS": "48",
        "PRODUCE_SECONDS": "1",
        "SWEEP_SECONDS": "1",
        "RETRY_SECONDS": "4",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
        "FLOWER_UNAUTHENTICATED_API": "true",
        "COLUMNS": "80",
    }


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 64 MB for the checkpoints; the folder alone where that is not allowed."""
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False
        ).returncode
    )
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=False)


def scripted(asked: Any) -> list[Any]:
    """Answer for the model's agents as one that always buys: no endpoint runs here."""
    return [Answer("BUY") for _ in asked]


class Day:
    """What is done to the deployment, and the notes of who watches it."""

    def __init__(
        self, folder: Path, env: dict[str, str], flower: str, judge: JudgeServer, disk: Path
    ) -> None:
        self._folder, self._env, self._flower = folder, {**os.environ, **env}, flower
        self._judge, self._filler = judge, disk / "filler"

    def before(self, hour: int) -> None:
        """Do to it what the hour brings."""
        self._judge.default = overloaded if hour in JUDGE_FAILS else good
        if hour == DISK_IS_FULL.start:
            self._fill()
        if hour == DISK_IS_FULL.stop:
            self._filler.unlink(missing_ok=True)
        if hour == BAD_STEP:
            self._babylon("lineages", "set", "babylon-agent", *BAD)
        if hour == BAD_STEP + 1:
            self._babylon("lineages", "set", "babylon-agent", *GOOD)

    def look(self, hour: int) -> None:
        """Write down what `status` and Flower say."""
        (self._folder / f"{hour:02}-status.txt").write_text(self._babylon("status"))
        rows = []
        with contextlib.suppress(httpx.HTTPError):
            tasks = httpx.get(f"{self._flower}/api/tasks", params={"limit": 30}, timeout=10).json()
            for task in sorted(tasks.values(), key=lambda task: -(task["received"] or 0)):
                what = f"{task['name'].removeprefix('babylon.')} {task['args']}"
                rows.append(f"{task['state']:8} {what}")
                rows.append(f"{'':8} {task['result'] or task['exception']}")
        (self._folder / f"{hour:02}-tasks.txt").write_text("\n".join(rows) + "\n")
        sys.stdout.write(f"hour {hour}: looked\n")
        sys.stdout.flush()

    def _fill(self) -> None:
        with self._filler.open("wb") as file, contextlib.suppress(OSError):
            for _ in range(64):
                file.write(bytes(2**20))

    def _babylon(self, *arguments: str) -> str:
        program = Path(sys.executable).with_name("babylon")
        ended = subprocess.run(
            [program, *arguments], env=self._env, cwd=self._folder, capture_output=True, text=True
        )
        return ended.stdout + ended.stderr


if __name__ == "__main__":
    main()
