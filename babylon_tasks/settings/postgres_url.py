"""Reads DATABASE_URL: one reading for every role and both drivers, before anything else happens.

libpq's own parser says what a text means. What neither driver could do, or only one of them, is
refused here by name. No message shows a part of the text that may belong to the password.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from babylon_tasks.errors import UserError
from babylon_tasks.settings.postgres_parameters import check

_EXAMPLE = "postgresql://user:password@host:5432/database"
_ENCODE = (
    "with special characters of the password percent-encoded (@ as %40, / as %2F, % as %25, a "
    "space as %20)"
)

# Other schemes that a person may paste here, and what to write instead.
_OTHER_SCHEMES = {
    "prisma": "of Prisma Accelerate, which speaks no Postgres: use the direct URL",
    "prisma+postgres": "of Prisma Accelerate, which speaks no Postgres: use the direct URL",
    "http": "of a web page: use the connection string of the database",
    "https": "of a web page: use the connection string of the database",
    "redis": "of Redis: use it for REDIS_URL",
    "rediss": "of Redis: use it for REDIS_URL",
} | dict.fromkeys(
    ("mysql", "mysql2", "mariadb", "sqlite", "sqlite3", "mongodb", "mongodb+srv", "mssql",
     "sqlserver", "oracle", "cockroachdb", "clickhouse", "duckdb", "file"),
    "of another database: Babylon's is Postgres",
)  # fmt: skip

# Parameters of Prisma and of hosts that mean nothing to us: how a client pools its connections.
_DROPPED = frozenset(
    {
        "pgbouncer",
        "connection_limit",
        "pool_timeout",
        "socket_timeout",
        "statement_cache_size",
        "max_connection_lifetime",
        "max_idle_connection_lifetime",
        "single_use_connections",
        "supa",  # Supabase, through Vercel
        "workaround",  # the same
        "uselibpqcompat",  # node-postgres: read sslmode as libpq does, which we do
    }
)
# Parameters of other clients, and what to write instead.
_OTHER_CLIENTS = {
    "currentSchema": "Babylon's tables are read from the schema public: leave it out",
    "search_path": "Babylon's tables are read from the schema public: leave it out",
    "sslaccept": "write sslmode=verify-full with sslrootcert=FILE, or sslmode=require",
    "sslidentity": "write sslcert=FILE and sslkey=FILE",
    "ssl": "write sslmode=require, or sslmode=verify-full with sslrootcert=FILE",
    "tls": "write sslmode=require, or sslmode=verify-full with sslrootcert=FILE",
    "ssl_mode": "write sslmode=…",
    "ssl-mode": "write sslmode=…",
    "database": "write dbname=…",
    "username": "write user=…",
    "ApplicationName": "write application_name=…",
    "statement_timeout": "write options=-cstatement_timeout%3D…",
}


def read(text: str) -> str:
    """Return DATABASE_URL in its normal form: a URL that libpq reads, with one value a parameter.

    Quotes around the text, SQLAlchemy's `+driver` and parameters of Prisma's pool are taken off.

    Raises:
        UserError: It is no Postgres URL, or says what one of the drivers cannot do.
    """
    text = _unquoted(text.strip())
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        name = _postgres_scheme(scheme[1].lower())
        parameters = _of_url(name + text[scheme.end(1) :])
    else:
        parameters = _of_keywords(text)
    return written(check(parameters))


def written(parameters: Mapping[str, str]) -> str:
    """Return the URL of these parameters; `psycopg.conninfo.conninfo_to_dict` gives them back."""
    rest = dict(parameters)
    user, password = rest.pop("user", None), rest.pop("password", None)
    name, host = rest.pop("dbname", None), rest.get("host", "")
    netloc = "" if user is None else quote(user, safe="")
    if password is not None and user:
        netloc += f":{quote(password, safe='')}"
    elif password is not None:
        rest["password"] = password
    if netloc:
        netloc += "@"
    if host and not re.search(r"[/,@%]", host):
        del rest["host"]
        netloc += f"[{host}]" if ":" in host else quote(host, safe="")
        if "port" in rest:
            netloc += f":{quote(rest.pop('port'), safe='')}"
    path = "" if name is None else f"/{quote(name, safe='')}"
    query = "&".join(
        f"{key}={quote(value, safe=_safe(key))}" for key, value in sorted(rest.items())
    )
    return f"postgresql://{netloc}{path}" + (f"?{query}" if query else "")


def _safe(key: str) -> str:
    return "" if "password" in key else "/,"


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    if text[:1] in ("'", '"', "`", "“", "‘", "<"):  # noqa: RUF001 - as an editor writes them
        raise UserError(f"DATABASE_URL begins with a quote: write {_EXAMPLE}, without quotes")
    if re.match(r"(psql|export|set|setx)\s|\$env:|DATABASE_URL\s*=", text, re.IGNORECASE):
        raise UserError(f"DATABASE_URL holds a command: write the URL alone, {_EXAMPLE}")
    if text.lower().startswith("jdbc:"):
        raise UserError(f"DATABASE_URL is in the form of JDBC: write {_EXAMPLE}")
    return text


def _postgres_scheme(scheme: str) -> str:
    base, _, driver = scheme.partition("+")
    if base in ("postgres", "postgresql") and (driver or scheme == base):
        return "postgresql"
    other = _OTHER_SCHEMES.get(scheme) or _OTHER_SCHEMES.get(base)
    if other:
        raise UserError(f"DATABASE_URL is the URL {other} ({_EXAMPLE})")
    raise _malformed()


def _of_url(url: str) -> dict[str, str]:
    _, _, rest = url.partition("://")
    # One @ ends user and password. Where it comes later, or there are more, libpq would take a part
    # of the password for a host, a database or a parameter, and its messages would show it.
    path = re.search(r"[/?]", rest)
    at = rest.find("@")
    if "\0" in rest or rest.count("@") > 1 or (path and path.start() < at and "/" in rest[:at]):
        raise _malformed()
    before, question, query = rest[at + 1 :].partition("?")
    if re.search(r"[;#&\\]", before) or before.count("/") > 1:
        raise UserError(
            "DATABASE_URL has one of ; # & / \\ in the host or in the database's name: parameters "
            "begin with ? and are separated by &; a character of the name is percent-encoded"
        )
    if "${" in rest[: at + 1].partition(":")[0] + before:
        raise UserError("DATABASE_URL holds ${…}, a variable that nobody has filled in")
    base = f"postgresql://{rest[: at + 1]}{before}"
    kept = list(_kept(query.split("&") if question else []))
    return _parsed(f"{base}?{'&'.join(kept)}" if kept else base)


def _kept(pairs: list[str]) -> Iterator[str]:
    """Yield the parameters of the query that libpq is to read.

    Raises:
        UserError: A parameter is another client's, unknown, or there twice.
    """
    from psycopg import pq

    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    names = [unquote(pair.partition("=")[0]) for pair in pairs if pair]
    # Without percent-encoding, a password in the query may hold what looks like a name.
    may_show = not {"password", "sslpassword"} & {*names}
    for pair, name in zip(filter(None, pairs), names, strict=True):
        value = unquote(pair.partition("=")[2])
        if name in _DROPPED or (name, value) in (("schema", "public"), ("schema", "")):
            continue
        if name == "schema":
            raise UserError(
                "DATABASE_URL says schema=…, but Babylon's tables are read from the schema public: "
                "where they are in public, leave schema out; another schema is not supported"
            )
        if name not in known and (name, value) != ("ssl", "true"):
            instead = _OTHER_CLIENTS.get(name)
            if not instead and not (may_show and re.fullmatch(r"[A-Za-z][A-Za-z_-]{1,39}", name)):
                raise _malformed()
            raise UserError(
                f"DATABASE_URL has the parameter {name}, which libpq does not know: "
                f"{instead or 'leave it out'}"
            )
        if may_show and re.search(r"[=\s]", pair.partition("=")[2]):
            raise UserError(
                f"DATABASE_URL: the value of {name} is not percent-encoded: write = as %3D, and a "
                "space as %20"
            )
        yield pair
    for name, times in Counter(names).items():
        if times > 1 and name in known:
            raise UserError(f"DATABASE_URL has the parameter {name} twice: leave one of them")


def _of_keywords(text: str) -> dict[str, str]:
    """Parse libpq's other form: `host=… dbname=…`."""
    if "\0" in text or not re.match(r"[a-z_]+\s*=", text):
        raise _malformed()
    parameters = _parsed(text)
    # In `dbname= password=x`, libpq takes the second pair for the first one's value.
    for key, value in parameters.items():
        pair = r"(^|\s)\w*password\s*=" if key == "options" else r"(^|\s)[a-z_]+\s*="
        if key != "password" and re.search(pair, value):
            raise _malformed()
    return parameters


def _parsed(text: str) -> dict[str, str]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        return {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except (
        psycopg.Error,
        ValueError,
    ):  # ValueError: no UTF-8. libpq's message may quote a password
        raise _malformed() from None


def _malformed() -> UserError:
    return UserError(f"DATABASE_URL is not a Postgres URL; it must look like {_EXAMPLE}, {_ENCODE}")
