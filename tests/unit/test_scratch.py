"""Folders for temporary files: private, and gone when their process is, however it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from babylon_tasks.scratch import own_folder, remove_left_behind, scratch

DAYS_AGO = time.time() - 2 * 86_400


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /tmp of all users."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def working(shared: Path, kind: str = "steps") -> tuple[subprocess.Popen[str], Path]:
    """A process that works in a folder with a prompt in it."""
    code = (
        "import sys, time; from babylon_tasks.scratch import scratch\n"
        f"with scratch({kind!r}) as folder:\n"
        "    (folder / 'samples.jsonl').write_text('You trade.')\n"
        "    print(folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(shared)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_nobody_else_may_look_into_it(shared: Path, before: int | None) -> None:
    folder = shared / f"babylon-tasks-{os.getuid()}"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)  # as release 0.1.0 made it
    with scratch("steps") as made:
        assert made.parent.parent == own_folder() == folder
        assert {mode(each) for each in (folder, made.parent, made)} == {0o700}
    assert not made.exists()


def test_a_folder_of_another_user_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "babylon-tasks-12345").mkdir()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    for refused in (own_folder, remove_left_behind):
        with pytest.raises(PermissionError, match="belongs to another user"):
            refused()


def test_a_link_is_refused(shared: Path) -> None:
    theirs = shared / "theirs"
    theirs.mkdir(mode=0o755)
    (shared / f"babylon-tasks-{os.getuid()}").symlink_to(theirs)
    with pytest.raises(PermissionError), scratch("steps"):
        pass
    assert mode(theirs) == 0o755
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("how", ["at a start", "at the next step"])
def test_what_the_dead_left_goes_and_what_the_living_have_stays(shared: Path, how: str) -> None:
    (killed, left), (living, used) = working(shared), working(shared)
    killed.kill()
    killed.wait()
    assert (left / "samples.jsonl").exists()
    if how == "at a start":
        remove_left_behind()
    else:
        with scratch("steps"):
            pass
    assert not left.exists()
    assert (used / "samples.jsonl").read_text() == "You trade."
    living.kill()
    living.wait()


def test_a_process_that_is_suspended_lives(shared: Path) -> None:
    process, used = working(shared)
    process.send_signal(19)
    remove_left_behind()
    assert used.exists()
    process.kill()
    process.wait()


def test_links_are_not_followed(shared: Path) -> None:
    kept = shared / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    with scratch("steps") as folder:
        parent = folder.parent
    (parent / "link").symlink_to(kept)
    (parent / "dead").mkdir()
    (parent / "dead" / "link").symlink_to(kept)
    (shared / "babylon-step-link").symlink_to(kept)
    os.utime(kept, (DAYS_AGO, DAYS_AGO))
    os.utime(kept / "file", (DAYS_AGO, DAYS_AGO))
    remove_left_behind()
    assert not (parent / "dead").exists()
    assert (kept / "file").exists()


@pytest.mark.parametrize("name", ["babylon-step-x1y2", "babylon-replay-x1y2"])
def test_what_release_0_1_0_left_goes_when_it_is_old(shared: Path, name: str) -> None:
    """Its folders are not locked: one that was written to lately may be in use."""
    folder = shared / name
    folder.mkdir()
    samples = folder / "samples.jsonl"
    samples.write_text("You trade.")
    os.utime(folder, (DAYS_AGO, DAYS_AGO))
    remove_left_behind()
    assert samples.exists()
    os.utime(samples, (DAYS_AGO, DAYS_AGO))
    remove_left_behind()
    assert not folder.exists()
