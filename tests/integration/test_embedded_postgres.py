"""The embedded PostgreSQL: where its socket lies, what was left behind, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from babylon_tasks.errors import UserError
from babylon_tasks.local import pgdata
from babylon_tasks.local.postgres import embedded_postgres

try:
    pgdata.program("postgres")
except UserError:
    pytest.skip("no PostgreSQL: install babylon-tasks[embedded]", allow_module_level=True)


def test_a_folder_too_deep_for_a_socket_and_with_odd_characters(tmp_path: Path) -> None:
    folder = tmp_path / "a b%c?d" / ("x" * 100) / "postgres"
    with embedded_postgres(folder, "babylon", settings={"fsync": "off"}) as url:
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT current_database(), current_setting('fsync')")
            assert row.fetchone() == ("babylon", "off")
            (sockets,) = connection.execute("SHOW unix_socket_directories").fetchone() or ()
        assert (folder / "postmaster.pid").exists()
    assert not (folder / "postmaster.pid").exists()
    assert not Path(sockets).exists()


def test_what_is_no_data_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "PG_VERSION").write_text("18\n")
    with (
        pytest.raises(UserError, match=r"\(postgres ended with code 2: .+ No such file .+\): see"),
        embedded_postgres(folder, "babylon"),
    ):
        pass
    assert (folder / "PG_VERSION").exists()


def test_why_a_server_ended_is_said_and_not_what_came_after(tmp_path: Path) -> None:
    """Nor why an earlier start failed, which its log has too."""
    folder = tmp_path / "postgres"
    with embedded_postgres(folder, "babylon", settings={"fsync": "off"}):
        pass
    (folder / "pg_wal").rename(tmp_path / "pg_wal")
    with (
        pytest.raises(UserError, match=r"ended with code 1: .+ FATAL: .+ directory \"pg_wal\" .+"),
        embedded_postgres(folder, "babylon"),
    ):
        pass
    (folder / "global" / "pg_control").unlink()
    with (
        pytest.raises(
            UserError, match=r"ended with code 2: .+pg_control\": No such file .+\): see"
        ),
        embedded_postgres(folder, "babylon"),
    ):
        pass


def test_a_first_start_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "no_such_locale")
    with (
        pytest.raises(UserError, match=r"\(initdb ended with code 1: .+ invalid locale .+\)"),
        embedded_postgres(tmp_path / "postgres", "babylon"),
    ):
        pass
    assert not (tmp_path / "postgres").exists()


def test_the_pid_file_of_a_killed_server_goes_where_it_tells_a_lie(tmp_path: Path) -> None:
    files = [tmp_path / "postmaster.pid", tmp_path / ".s.PGSQL.5432.lock"]
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie until we reap it
        for pid in (ended.pid, os.getpid()):
            for file in files:
                file.write_text(f"{pid}\n{tmp_path}\n")
            pgdata.forget_killed_server(tmp_path)
            assert not any(file.exists() for file in files)
    files[0].write_text(f"{ended.pid}\n")  # nobody's: PostgreSQL understands that
    pgdata.forget_killed_server(tmp_path)
    assert files[0].exists()
