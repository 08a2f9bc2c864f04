"""DATABASE_URL in every form that hosts, ORMs and people give: one reading, or one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asyncpg import connect_utils
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from babylon_tasks.settings.postgres_url import read
from babylon_tasks.store.asyncpg_arguments import of_parameters
from babylon_tasks.store.postgres import server_name, unreachable

SECRET = "s3cretXq"
AT_H = {"user": "u", "password": "p", "host": "h", "dbname": "db"}


@pytest.fixture(autouse=True)
def no_variables_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h/db", {}),
        ("postgres://u:p@h/db", {}),  # Heroku, Railway, Render, Fly
        ("POSTGRES://u:p@h/db", {}),
        (" postgres://u:p@h/db\n", {}),
        ('"postgres://u:p@h/db"', {}),  # docker --env-file leaves the quotes
        ("'postgres://u:p@h/db'\r\n", {}),
        ("postgresql+psycopg2://u:p@h/db", {}),  # SQLAlchemy
        ("postgresql+psycopg://u:p@h/db", {}),
        ("postgresql+asyncpg://u:p@h/db", {}),
        ("postgres+asyncpg://u:p@h/db", {}),
        ("host=h dbname=db user=u password=p", {}),  # libpq's own other form
        ("dbname = 'db' host=h\nuser=u password='p'", {}),
        ("postgres://u:p@h:6543/db", {"port": "6543"}),
        ("postgres://h/db?user=u&password=p", {}),
        ("postgres://u:p@h/db?", {}),
        ("postgres://u:p@h/db?sslmode=", {}),
        # Prisma
        ("postgres://u:p@h/db?schema=public", {}),
        ("postgres://u:p@h/db?schema=public&pgbouncer=true&connection_limit=1&pool_timeout=0", {}),
        ("postgres://u:p@h/db?connection_limit=5&sslmode=require", {"sslmode": "require"}),
        # Supabase: the pooler's user carries the project; Vercel adds `supa`
        (
            "postgres://postgres.ref:p@aws-0-eu-central-1.pooler.supabase.com:6543/postgres"
            "?sslmode=require&supa=base-pooler.x",
            {"user": "postgres.ref", "host": "aws-0-eu-central-1.pooler.supabase.com",
             "port": "6543", "dbname": "postgres", "sslmode": "require"},
        ),
        # Neon
        (
            "postgresql://u:p@ep-a-b-123-pooler.eu-central-1.aws.neon.tech/db"
            "?sslmode=require&channel_binding=require",
            {"host": "ep-a-b-123-pooler.eu-central-1.aws.neon.tech", "sslmode": "require",
             "channel_binding": "require"},
        ),
        ("postgres://u:p@h/db?options=endpoint%3Dep-x", {"options": "endpoint=ep-x"}),
        ("postgres://u:p@h/db?options=project%3Dx", {"options": "project=x"}),
        # Cloud SQL and other sockets: what the query says wins, as in libpq
        ("postgres://u:p@localhost/db?host=/cloudsql/p:r:i", {"host": "/cloudsql/p:r:i"}),
        ("postgres://u:p@/db?host=/cloudsql/p:r:i", {"host": "/cloudsql/p:r:i"}),
        ("postgres://u:p@%2Fcloudsql%2Fp%3Ar%3Ai/db", {"host": "/cloudsql/p:r:i"}),
        # Several hosts
        (
            "postgres://u:p@h1:1,h2:2/db?target_session_attrs=read-write",
            {"host": "h1,h2", "port": "1,2", "target_session_attrs": "read-write"},
        ),
        ("postgres://u:p@h1,h2/db?port=5433", {"host": "h1,h2", "port": "5433"}),
        ("postgres://u:p@h1,h2:2/db", {"host": "h1,h2", "port": "5432,2"}),
        ("postgres://u:p@h/db?hostaddr=10.0.0.1", {"hostaddr": "10.0.0.1"}),
        ("postgres://u:p@[::1]:5432/db", {"host": "::1", "port": "5432"}),
        ("postgres://u:p@[fe80::1%25eth0]/db", {"host": "fe80::1%eth0"}),
        # TLS
        ("postgres://u:p@h/db?ssl=true", {"sslmode": "require"}),  # JDBC's, which libpq knows
        (
            "postgres://u:p@h/db?sslrootcert=/ca.pem",
            {"sslrootcert": "/ca.pem", "sslmode": "verify-full"},
        ),
        (
            "postgres://u:p@h/db?sslmode=verify-ca&sslrootcert=/ca.pem&sslcert=c&sslkey=k",
            {"sslmode": "verify-ca", "sslrootcert": "/ca.pem", "sslcert": "c", "sslkey": "k"},
        ),
        # Passwords
        ("postgres://u:p%40%2F%25%3A%3F%23%24s@h/db", {"password": "p@/%:?#$s"}),
        ("postgres://u:a:b@h/db", {"password": "a:b"}),
        ("postgres://u:a?b#c&d=e@h/db", {"password": "a?b#c&d=e"}),
        ("postgres://u%40corp:p@h/db", {"user": "u@corp"}),
        ("postgres://u:p%C3%A9%20%2B+@h/db", {"password": "pé ++"}),
        ("postgres://u:p@h/d%2Fb", {"dbname": "d/b"}),
        ("postgres://u:p@h/db?connect_timeout=3&keepalives_idle=30",
         {"connect_timeout": "3", "keepalives_idle": "30"}),
        ("postgres://u:p@h/db?options=-c%20statement_timeout%3D5s",
         {"options": "-c statement_timeout=5s"}),
        ("postgres://u:p@h/db?options=-csearch_path%3Dpublic", {"options": "-csearch_path=public"}),
    ],
)  # fmt: skip
def test_what_works_is_read_once_and_for_all(text: str, expected: dict[str, str]) -> None:
    url = Settings(database_url=text).postgres()
    assert conninfo_to_dict(url) == AT_H | expected
    assert read(url) == url
    assert url.startswith("postgresql://")


@pytest.mark.parametrize("text", ["postgresql://", "postgresql:///", "service=x",
                                  "postgresql:///?service=x&passfile=/f"])  # fmt: skip
def test_what_the_environment_or_a_file_says_may_be_left_out(text: str) -> None:
    assert conninfo_to_dict(read(text)).get("host") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a Postgres URL"),
        (f"u:{SECRET}@h/db", "is not a Postgres URL"),
        ("h:5432/db", "is not a Postgres URL"),
        (f"postgres:u:{SECRET}@h/db", "is not a Postgres URL"),
        (f"postgres:/u:{SECRET}@h/db", "is not a Postgres URL"),
        (f"postgresql://u:{SECRET}@[::1/x", "is not a Postgres URL"),
        (f"psql 'postgres://u:{SECRET}@h/db'", "holds a command: write the URL alone"),
        (f"export DATABASE_URL=postgres://u:{SECRET}@h/db", "holds a command"),
        (f"DATABASE_URL=postgres://u:{SECRET}@h/db", "holds a command"),
        (f"'postgres://u:{SECRET}@h/db", "begins with a quote"),
        (f"“postgres://u:{SECRET}@h/db”", "begins with a quote"),
        (f"jdbc:postgresql://h/db?user=u&password={SECRET}", "in the form of JDBC: write postgres"),
        (f"prisma://accelerate.prisma-data.net/?api_key={SECRET}", "Prisma Accelerate"),
        (f"prisma+postgres://accelerate.prisma-data.net/?api_key={SECRET}", "use the direct URL"),
        (f"mysql://u:{SECRET}@h/db", "another database: Babylon's is Postgres"),
        (f"mysql+pymysql://u:{SECRET}@h/db", "another database"),
        ("sqlite:///x.db", "another database"),
        (f"https://{SECRET}.supabase.co", "a web page"),
        (f"redis://:{SECRET}@h:6379/0", "use it for REDIS_URL"),
        # Passwords that are not percent-encoded
        (f"postgres://u:{SECRET}@x@h/db", "percent-encoded"),
        (f"postgres://u:x/{SECRET}@h/db", "percent-encoded"),
        (f"postgres://u:x/y?{SECRET}=1@h/db", "percent-encoded"),
        (f"postgres://u:12/{SECRET}?{SECRET}=1@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET}%@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET}%zz@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET} x@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET}%00@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET}%FF@h/db", "percent-encoded"),
        (f"postgres://u:{SECRET}\udcff@h/db", "percent-encoded"),
        (f"postgres://u:p@x/y?z{SECRET}=1@h/db", "percent-encoded"),
        (f"postgres://h/db?user=u&password=x&{SECRET}=1", "percent-encoded"),
        (f"postgres://u:{SECRET}", "a port that is none"),
        (f"postgres://u:{SECRET}:5432/db", "a port that is none"),
        (f"host=h password=x {SECRET}=y", "is not a Postgres URL"),
        (f"host=h password='{SECRET}", "is not a Postgres URL"),
        (f"dbname= password={SECRET}", "is not a Postgres URL"),
        (f"host=h password={SECRET} x", "is not a Postgres URL"),
        # Schemas
        ("postgres://u:p@h/db?schema=babylon", "says schema=…, but Babylon's tables are read"),
        ("postgres://u:p@h/db?currentSchema=babylon", "the schema public: leave it out"),
        ("postgres://u:p@h/db?search_path=babylon", "the schema public: leave it out"),
        ("postgres://u:p@h/db?options=-csearch_path%3Dbabylon", "sets search_path in options"),
        ("postgres://u:p@h/db?options=-c%20search_path%3Dbabylon%2Cpublic", "sets search_path"),
        ("postgres://u:p@h/db?options=--search_path%3Dbabylon", "sets search_path"),
        ("postgres://u:p@h/db?options=--Search-Path%3Dbabylon", "sets search_path"),
        ("postgres://u:p@h/db;sslmode=require", "parameters begin with ? and are separated by &"),
        ("postgres://u:p@h/db&sslmode=require", "parameters begin with ? and are separated by &"),
        ("postgres://u:p@h/db#schema=babylon", "parameters begin with ? and are separated by &"),
        (f"postgres://u:{SECRET}@http://h/db", "in the host or in the database's name"),
        ("postgres://u:p@h/db\\n", "in the host or in the database's name"),
        (f"postgres://${{USER}}:{SECRET}@h/db", "a variable that nobody has filled in"),
        (f"postgres://u:{SECRET}@${{HOST}}/db", "a variable that nobody has filled in"),
        (f"Server=h;Database=db;User Id=u;Password={SECRET}", "is not a Postgres URL"),
        (f"r2dbc:postgresql://u:{SECRET}@h/db", "is not a Postgres URL"),
        # Values that are not percent-encoded, where the password is
        ("postgres://u:p@h/db?sslmode=require&options=endpoint=ep", "the value of options is not"),
        ("postgres://u:p@h/db?options=-c%20statement_timeout=5s", "write = as %3D"),
        ("postgres://u:p@h/db?application_name=my app", "application_name is not percent"),
        (f"postgres://h/db?user=u&password={SECRET}=", "is not a Postgres URL"),
        # Parameters of others, and values that one driver cannot keep
        ("postgres://u:p@h/db?sslaccept=strict", "write sslmode=verify-full with sslrootcert"),
        ("postgres://u:p@h/db?sslidentity=x.p12", "write sslcert=FILE and sslkey=FILE"),
        ("postgres://u:p@h/db?ssl=require", "write sslmode=require"),
        ("postgres://u:p@h/db?sslmode=no-verify", "write sslmode=require"),
        ("postgres://u:p@h/db?sslmode=verify_full", "write sslmode=verify-full"),
        ("postgres://u:p@h/db?sslmod=require", "the parameter sslmod, which libpq does not know"),
        ("postgres://u:p@h/db?charset=utf8", "the parameter charset"),
        ("postgres://u:p@h/db?sslmode=require&sslmode=disable", "the parameter sslmode twice"),
        ("postgres://u:p@h/db?host=a:5432&host=b:5432", "the parameter host twice"),
        ("postgres://u:p@/db?host=a:5432", "a host that is none"),
        ("postgres://u:p@h1,,h2/db", "a host that is none"),
        ("postgres://u:p@a..b/db", "a host that is none"),
        ("postgres://u:p@{host}:5432/db", "a host that is none"),
        ("postgres://u:p@<host>/db", "a host that is none"),
        ("postgres://u:p@%40abstract/db", "an abstract socket"),
        ("postgres://u:p@h:0/db", "a port that is none"),
        ("postgres://u:p@h:99999/db", "a port that is none"),
        ("postgres://u:p@h/db?port=abc", "a port that is none"),
        ("postgres://u:p@h1,h2/db?port=1,2,3", "as many as it has hosts"),
        ("postgres://u:p@h/db?hostaddr=name", "hostaddr must be an IP address"),
        ("postgres://u:p@h/db?hostaddr=10.0.0.1,10.0.0.2", "as many addresses"),
        ("postgres://u:p@h1,h2/db?target_session_attrs=standby", "target_session_attrs"),
        ("postgres://u:p@h/db?target_session_attrs=prefer-standby", "any, read-write, primary"),
        ("postgres://u:p@h/db?connect_timeout=soon", "connect_timeout must be a whole number"),
        ("postgres://u:p@h/db?connect_timeout=-1", "connect_timeout must be a whole number"),
        ("postgres://u:p@h/db?connect_timeout=99999999999", "connect_timeout must be a whole"),
        ("postgres://u:p@h/db?client_encoding=latin1", "client_encoding must be UTF8"),
        ("postgres://u:p@h/db?require_auth=scram-sha-256", "require_auth is not supported"),
        ("postgres://u:p@h/db?gssencmode=require", "gssencmode has a value"),
        ("postgres://u:p@h/db?replication=database", "replication is not supported"),
        ("postgres://u:p@h/db?sslrootcert=/ca&sslmode=prefer", "its sslmode verifies nothing"),
        ("postgres://u:p@h/db?sslrootcert=system&sslmode=require", "needs sslmode=verify-full"),
        ("postgres://u:p@h/db?sslnegotiation=direct", "needs sslmode=require or verify-full"),
        ("postgres://u:p@h/d%0Ab", "a character that cannot be printed"),
    ],
)  # fmt: skip
def test_what_cannot_be_supported_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(database_url=text).postgres()
    assert says in str(caught.value)
    assert str(caught.value).startswith("DATABASE_URL")
    assert_safe(caught.value)


def assert_safe(error: BaseException) -> None:
    """One line, and neither it nor what led to it, as a log would show it, holds the password."""
    assert "\n" not in str(error)
    seen: BaseException | None = error
    while seen is not None:
        assert SECRET not in f"{seen} {seen!r}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def test_a_certificate_is_named_beside_a_mode_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-ca")
    assert "sslmode" not in conninfo_to_dict(read("postgres://h/db?sslrootcert=/ca.pem"))


def test_names_for_messages_hold_no_secret() -> None:
    url = f"postgresql://u:{SECRET}@/db?host=h1,/sock,h3&port=1,2,3"
    assert server_name(url) == "Postgres at h1:1, a socket, h3:3/db"
    assert server_name("postgres://u:p@h/db") == "Postgres at h/db"
    assert server_name("postgresql:///db") == "Postgres at a socket/db"
    assert server_name(f"postgres://u:{SECRET}@[h") == "Postgres"


# --- by the thousand ---

ODD = "@/#?%: &=+'\"\\[]{}|<>,;$!é\u00a0\t\n\x00\udcff"
words = st.text(alphabet="ab1-_.", min_size=1, max_size=6)
odd = st.text(alphabet=ODD + "ab1", max_size=5)
passwords = st.builds(lambda a, b: f"{a}{SECRET}{b}", odd, odd)
hosts = st.lists(
    words | odd | st.sampled_from(["[::1]", "%2Fsock", "127.0.0.1", "", "a.b", "[fe80::1]"]),
    max_size=3,
).map(",".join)  # fmt: skip
ports = st.one_of(st.just(""), st.sampled_from([":5432", ":0", ":", ":99999", ":x", ":1,2"]))
names = st.sampled_from(
    ["sslmode", "host", "port", "hostaddr", "options", "target_session_attrs", "schema", "service",
     "pgbouncer", "connect_timeout", "application_name", "sslrootcert", "channel_binding", "user",
     "dbname", "ssl", "sslnegotiation", "load_balance_hosts", "passfile", "keepalives", "nonsense",
     "gssencmode", "client_encoding", "require_auth"]
)  # fmt: skip
values = st.one_of(
    odd,
    words,
    st.sampled_from(["require", "verify-full", "public", "/sock", "1", "5432", "true", "any",
                     "10.0.0.1", "-csearch_path%3Dx", "UTF8", "disable", "a,b", "%41", "%"]),
)  # fmt: skip
queries = st.lists(st.tuples(names, values).map("=".join), max_size=4).map("&".join)
schemes = st.sampled_from(
    ["postgres://", "postgresql://", "postgresql+asyncpg://", "postgresql+psycopg2://", "mysql://",
     "prisma+postgres://", "jdbc:postgresql://", "postgres:", "'postgres://", "psql postgres://"]
)  # fmt: skip
urls = st.builds(
    lambda *parts: "{}{}:{}@{}{}/{}?{}".format(*parts),
    schemes, words, passwords, hosts, ports, odd | words, queries,
)  # fmt: skip
encoded_urls = st.builds(
    lambda user, password, host, port, name, query: (
        f"postgresql://{user}:{password}@{host}{port}/{name}?{query}"
    ),
    words,
    st.just(f"%40%2F{SECRET}%25"),
    hosts,
    ports,
    words,
    queries,
)
keywords = st.lists(
    st.one_of(
        st.tuples(names, values).map("=".join), passwords.map(lambda text: f"password={text}")
    ),
    max_size=5,
).map(" ".join)
texts = st.one_of(urls, encoded_urls, encoded_urls, keywords)


def check_text(text: str) -> None:
    """Either both drivers are told the same, or one line says what is wrong."""
    try:
        url = read(text)
    except UserError as error:
        assert_safe(error)
        return
    parameters: dict[str, Any] = conninfo_to_dict(url)
    assert read(url) == url
    failed = unreachable(url, psycopg.OperationalError(f"no: {parameters.get('password')}\n{url}"))
    assert "\n" not in str(failed)
    if SECRET in str(parameters.get("password", "")):
        assert SECRET not in str(failed)
        assert SECRET not in server_name(url)
    for host, address, port in servers(parameters):
        one = parameters | {"host": host or "/tmp", "port": port}
        one |= {"user": parameters.get("user") or "me", "dbname": parameters.get("dbname") or "me"}
        if address:
            one["hostaddr"] = address
        told = of_parameters(one, encrypted=False)
        addresses, others, _ = connect_utils._parse_connect_arguments(
            dsn=None, passfile=None, command_timeout=None, statement_cache_size=0,
            max_cached_statement_lifetime=0, max_cacheable_statement_size=0, gsslib=None,
            service=None, servicefile=None, **told,
        )  # fmt: skip
        place = address or one["host"]
        socket = str(Path(place) / f".s.PGSQL.{port}")
        expected = socket if place.startswith("/") else (place, int(port))
        assert addresses == [expected]
        assert (others.user, others.database) == (one["user"], one["dbname"])
        assert others.password == parameters.get("password", "")
        assert others.server_settings.get("options") == parameters.get("options")


def servers(parameters: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each server that libpq would try: host, address and port."""
    places = parameters.get("host", "").split(",")
    addresses = parameters.get("hostaddr", "").split(",")
    count = max(len(places), len(addresses))
    numbers = parameters.get("port", "").split(",")
    numbers = numbers * count if len(numbers) == 1 else numbers
    for n in range(count):
        place = places[n] if n < len(places) else ""
        address = addresses[n] if n < len(addresses) else ""
        yield place or address, address, numbers[n] or "5432"


no_limit = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(no_limit, max_examples=300)
@example(f"postgres://u:x/{SECRET}@h/db")
@given(texts)
def test_any_text_is_read_alike_or_refused_in_one_line(text: str) -> None:
    check_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(4))
@settings(no_limit, max_examples=25_000)
@given(text=texts)
def test_a_hundred_thousand_texts_are_read_alike_or_refused_in_one_line(
    part: int, text: str
) -> None:
    check_text(text)
