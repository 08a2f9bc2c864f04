"""Every SQL statement of release 0.1.0 on our schema, by that release's own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_tasks.store.migrate import migrations_folder
from tests.old_release import extract_old_release

# Those that ask Postgres as workers and commands do.
_TESTS = (
    "filters", "judge", "judge_scores", "judge_workers", "logprobs", "metrics", "odd_input",
    "produce", "recovery", "retention", "score", "serverless", "train", "until_written",
    "window_transitions",
)  # fmt: skip
# Since the version that serves is `deployed`, not `ready`, and no other one is.
_CHANGED = (
    "retention.py::test_a_death_before_the_note_changes_nothing",
    "retention.py::test_old_steps_go_and_the_app_is_told",
    "retention.py::test_what_the_app_has_deployed_or_holds_stays",
    "serverless.py::test_a_step_names_what_w_and_b_serves_and_keeps_its_job",
    "train.py::test_publishing_is_a_step_of_its_own",
    "train.py::test_the_whole_chain_on_a_database_that_prisma_made",
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_old_release_passes_its_own_tests_on_our_schema(tmp_path: Path) -> None:
    extract_old_release(tmp_path, "tests", "pyproject.toml")
    shutil.copytree(migrations_folder(), tmp_path / "migrations", dirs_exist_ok=True)
    files = [f"tests/integration/test_{name}.py" for name in _TESTS]
    changed = [f"--deselect=tests/integration/test_{name}" for name in _CHANGED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", *changed, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
