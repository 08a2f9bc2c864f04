"""Every way to name one server: psycopg and asyncpg are on the same one, with the same settings."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from babylon_tasks.cockpit import checks
from babylon_tasks.errors import ServerRefused, ServerUnavailable, UserError
from babylon_tasks.settings.postgres_url import written
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.store.traces import open_reader
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from tests.pgbouncer import pgbouncer

ASKED = "SELECT current_database(), current_user, current_setting('geqo'), inet_server_port()"


class Server:
    """The test's database: its name and folder of sockets, and a pooler before it, over TCP."""

    def __init__(self, url: str, tcp: str) -> None:
        parameters = conninfo_to_dict(url)
        self.name, self.folder = str(parameters["dbname"]), str(parameters["host"])
        self.tcp_port = str(conninfo_to_dict(tcp)["port"])


@pytest.fixture(scope="module")
def tcp(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tcp")
    with pgbouncer(postgres_url, folder, "transaction", ignore_startup_parameters="options") as url:
        yield url


@pytest.fixture
def server(database_url: str, tcp: str) -> Server:
    if not str(conninfo_to_dict(database_url).get("host", "")).startswith("/"):
        pytest.skip("the server is not the embedded one")
    return Server(database_url, tcp)


SOCKETS: dict[str, Callable[[Server], str]] = {
    "the query's host wins": lambda s: (
        f"postgresql://postgres:p@localhost:1/{s.name}?host={s.folder}&port=5432"
    ),
    "no host but in the query": lambda s: f"postgres://postgres:p@/{s.name}?host={s.folder}",
    "percent-encoded": lambda s: f"postgres://postgres@{quote(s.folder, safe='')}/{s.name}",
    "of an ORM": lambda s: f"postgresql+asyncpg://postgres:p@/{s.name}?host={s.folder}",
    "keywords": lambda s: f"host={s.folder} dbname={s.name} user=postgres",
    "quotes": lambda s: f'"postgres://postgres@/{s.name}?host={s.folder}&schema=public"\n',
    "two folders": lambda s: f"postgres://postgres@/{s.name}?host=/nowhere,{s.folder}",
}
NETWORK: dict[str, Callable[[Server], str]] = {
    "plain": lambda s: f"postgres://anybody:p@127.0.0.1:{s.tcp_port}/{s.name}",
    "by name": lambda s: f"postgres://anybody:p@localhost:{s.tcp_port}/{s.name}",
    "an address for a name": lambda s: (
        f"postgres://anybody@db.example:{s.tcp_port}/{s.name}?hostaddr=127.0.0.1"
    ),
    "the second of two": lambda s: f"postgres://a@127.0.0.1:1,127.0.0.1:{s.tcp_port}/{s.name}",
    "one that writes": lambda s: (
        f"postgres://a@127.0.0.1:{s.tcp_port}/{s.name}?target_session_attrs=read-write"
    ),
    "any of two": lambda s: (
        f"postgres://a@127.0.0.1:1,127.0.0.1:{s.tcp_port}/{s.name}?load_balance_hosts=random"
    ),
    "of Prisma": lambda s: (
        f"postgres://a@127.0.0.1:{s.tcp_port}/{s.name}?pgbouncer=true&connection_limit=1"
    ),
    "keepalives": lambda s: (
        f"postgres://a@127.0.0.1:{s.tcp_port}/{s.name}?keepalives_idle=5&connect_timeout=3"
    ),
}


def answers(context: Context) -> list[tuple[Any, ...]]:
    """What each driver says about where it is."""

    async def of_asyncpg() -> tuple[Any, ...]:
        async with open_reader(context.database, context.settings) as reader:
            return tuple((await reader._connection.fetchrow(ASKED)).values())

    row = context.database.connected().execute(ASKED).fetchone()
    assert row
    return [tuple(row.values()), aio.run(of_asyncpg())]


@pytest.mark.parametrize("form", {**SOCKETS, **NETWORK}.values(), ids=[*SOCKETS, *NETWORK])
def test_both_drivers_are_on_the_same_server(
    form: Callable[[Server], str], server: Server, make_context: Callable[..., Context]
) -> None:
    context = make_context(database_url=form(server))
    one, other = answers(context)
    assert one == other
    assert one[0] == server.name
    assert checks.postgres(context.settings)
    assert checks.tables(context.settings)


def test_options_reach_both(server: Server, make_context: Callable[..., Context]) -> None:
    url = f"postgres://postgres@/{server.name}?host={server.folder}&options=-cgeqo%3Doff"
    assert [row[2] for row in answers(make_context(database_url=url))] == ["off", "off"]


def test_service_file_password_file_and_variables(
    server: Server,
    make_context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "services"
    file.write_text(
        f"[babylon]\nhost={server.folder}\ndbname={server.name}\nuser=postgres\n"
        "options=-cgeqo=off\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    by_service = answers(make_context(database_url="postgresql:///?service=babylon"))
    assert by_service == [(server.name, "postgres", "off", None)] * 2
    monkeypatch.setenv("PGHOST", server.folder)
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", server.name)
    assert answers(make_context(database_url="postgresql://")) == [
        (server.name, "postgres", "on", None)
    ] * 2  # fmt: skip
    monkeypatch.setenv("PGDATABASE", "another")
    url = f"postgresql://postgres@/{server.name}"  # what the URL says comes first
    assert [row[0] for row in answers(make_context(database_url=url))] == [server.name] * 2


def test_a_password_file_serves_both(
    server: Server, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_context()
    with context.database.transaction() as tx:
        tx.execute("CREATE ROLE with_password_of_a_file LOGIN SUPERUSER PASSWORD 's3cret'")
    try:
        file = tmp_path / "pass"
        file.write_text("*:*:*:with_password_of_a_file:s3cret\n")
        file.chmod(0o600)
        url = f"postgres://with_password_of_a_file@/{server.name}?host={server.folder}"
        told = answers(make_context(database_url=f"{url}&passfile={file}"))
        assert [row[1] for row in told] == ["with_password_of_a_file"] * 2
        with pytest.raises(UserError, match=r"no password supplied|password authentication failed"):
            checks.postgres(make_context(database_url=url).settings)
    finally:
        with context.database.transaction() as tx:
            tx.execute("DROP ROLE with_password_of_a_file")


@pytest.mark.parametrize(
    "url",
    ["postgres://u:s3cret@127.0.0.1:1/db", "postgres://u:s3cret@127.0.0.1:1,127.0.0.1:2/db",
     "postgres://u:s3cret@no-such-host.invalid/db", "postgres://u:s3cret@/db?host=/nowhere",
     "postgres://u:s3cret@xn--a/db", f"postgres://u:s3cret@{'ü' * 40}.example/db"],
)  # fmt: skip
def test_nobody_there_is_one_line(url: str, make_context: Callable[..., Context]) -> None:
    with pytest.raises(ServerUnavailable, match="is DATABASE_URL right") as caught:
        checks.postgres(make_context(database_url=url).settings)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER ROLE {role} NOLOGIN", "role without LOGIN"),
        ('REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC', "GRANT CONNECT ON DATABASE"),
        ('ALTER DATABASE "{name}" ALLOW_CONNECTIONS false', "ALLOW_CONNECTIONS true"),
        ("ALTER ROLE {role} PASSWORD 'x'", "the password in DATABASE_URL is wrong"),
    ],
)
def test_a_login_that_a_person_must_mend_is_no_outage(
    change: str, says: str, database_url: str, postgres_url: str
) -> None:
    """Whatever the password is: masked, it must not hide what the server says."""
    role, parameters = f"with_password_{uuid.uuid4().hex[:8]}", conninfo_to_dict(database_url)
    secret, name = "authentication", parameters["dbname"]
    login = {**parameters, "user": role, "password": secret}
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'".encode())
        admin.execute(change.format(role=role, name=name).encode())
        try:
            with pytest.raises(ServerRefused, match=says) as caught:
                require_applied(written(login))
        finally:
            admin.execute(f"DROP ROLE {role}".encode())
    assert secret not in str(caught.value)


def test_a_service_that_nobody_knows_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICEFILE", "/nowhere")
    for url in ("service=nobodys", "postgresql://u@127.0.0.1:1/db?service=nobodys"):
        with pytest.raises(ServerRefused, match="name a service that the file of services has"):
            require_applied(url)


def test_another_service_at_the_port_is_no_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].send(b"-ERR\r\n"))
        thread.start()
        with pytest.raises(ServerRefused, match=r"it is no Postgres: .* is the port right"):
            require_applied(f"postgresql://u:p@127.0.0.1:{listener.getsockname()[1]}/db")
        thread.join()
