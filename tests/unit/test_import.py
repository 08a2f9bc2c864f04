"""Programs that import the Celery application, or run in a folder with a `workers` of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from babylon_tasks.settings import Settings


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, without any setting but these."""
    bare = {k: v for k, v in os.environ.items() if k.lower() not in Settings.model_fields}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**bare, **env},
        capture_output=True,
        text=True,
        check=False,
    )


SCHEDULER = """
import os, sys
from babylon_tasks.celery import app
from babylon_tasks.errors import UserError
assert "workers" not in sys.modules
for _ in range(2):
    try:
        app.send_task("babylon.produce")
    except UserError as error:
        assert "REDIS_URL is not set" in str(error) or "DATABASE_URL is not set" in str(error)
    else:
        raise AssertionError("sent")
os.environ.update(DATABASE_URL="postgresql://h/d", REDIS_URL="redis://h:1/0")
from babylon_tasks.settings import load_settings
load_settings.cache_clear()
assert app.conf.broker_url == "redis://h:1/0"
"""


def test_the_app_is_imported_without_a_setting_and_raises_at_its_use(tmp_path: Path) -> None:
    """As a scheduler does that parses all its jobs, such as Airflow."""
    done = run(tmp_path, "-P", "-c", SCHEDULER)
    assert done.returncode == 0, done.stderr


def test_a_package_workers_of_somebody_else_is_named(tmp_path: Path) -> None:
    package = tmp_path / "workers"
    package.mkdir()
    (package / "__init__.py").touch()
    for program in (
        ("-m", "babylon_tasks"),
        ("-m", "celery", "-A", "babylon_tasks", "report"),
        ("-m", "celery", "-A", "babylon_tasks", "flower"),
        ("-c", "from babylon_tasks.cli import main; main()", "status"),
    ):
        done = run(tmp_path, *program)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{package} hides our package `workers`: start this in another")


def test_a_file_of_that_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "workers.py").touch()
    done = run(tmp_path, "-m", "babylon_tasks")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(str(tmp_path / "workers.py"))


LEAN = """
import sys
HEAVY = {"torch", "transformers", "peft", "art", "litellm", "starlette"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import load_settings
from workers.serve import service
settings = load_settings()
made = service.make_backends(settings, Lineage.of_deployment(settings))
print(*(backend.kind for backend in made.all))
"""


def test_in_front_of_vllm_and_wandb_no_torch_is_needed(tmp_path: Path) -> None:
    urls = "http://gpu1:8001,http://gpu2:8001"
    done = run(tmp_path, "-P", "-c", LEAN, VLLM_URLS=urls, WANDB_API_KEY="k" * 40)
    assert (done.returncode, done.stdout.split()) == (0, ["vllm", "vllm", "wandb"]), done.stderr
