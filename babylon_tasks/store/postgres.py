"""How this project connects to Postgres, and how it says that it cannot."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from babylon_tasks.errors import ServerRefused, ServerUnavailable
from babylon_tasks.settings import postgres_url
from babylon_tasks.text import one_line

# If DATABASE_URL says nothing else; the timeout is one for each host, in seconds.
_DEFAULTS = {"connect_timeout": "5", "application_name": "babylon-tasks"}

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Amazon Linux
    "/etc/ssl/ca-bundle.pem",  # SUSE
)

# What libpq, asyncpg, OpenSSL or a pooler says of a mistake in DATABASE_URL, and what to do.
_HINTS = (
    (r"certificate has expired", "the server's certificate has expired: renew it there"),
    (
        r"does not match host name|Hostname mismatch|IP address mismatch",
        "the server's certificate is for another host: use the host name in it",
    ),
    (
        r"certificate verify failed",
        "the server's certificate cannot be verified: name the file of the authority that signed "
        "it with sslrootcert=FILE (sslrootcert=system for the authorities of this machine)",
    ),
    (
        r"root certificate file|could not read root certificate|could not load .*certificate",
        "sslrootcert, sslcert and sslkey must name files that this user can read",
    ),
    (
        r"does not support SSL|rejected SSL upgrade",
        "the server has no TLS, and sslmode asks for it: turn it on there, or write sslmode=prefer",
    ),
    (
        r"unsupported startup parameter.*: options",
        "PgBouncer takes no options=…: leave it out, or add it to its ignore_startup_parameters",
    ),
    (
        r"statement pooling mode",
        "PgBouncer's pool_mode=statement knows no transactions: set pool_mode=transaction",
    ),
    (
        r"PQexec disallowed",
        "PgBouncer's disable_pqexec=1 forbids statements that we send: set disable_pqexec=0",
    ),
    (
        r"invalid command '",
        "this is PgBouncer's console, no database: write the database's name in DATABASE_URL",
    ),
    (
        r"channel binding (is )?required|channel_binding=require",
        "the server offers no channel binding: leave channel_binding out",
    ),
    (
        r"password authentication failed|no password supplied|SASL authentication failed",
        "the password in DATABASE_URL is wrong, missing or not percent-encoded",
    ),
    (
        r"(database|role) \S+ does not exist|no such (user|database)",
        "name a user and a database that exist",
    ),
    (r"is not permitted to log in", "its user is a role without LOGIN: ALTER ROLE … LOGIN"),
    (r"permission denied for database", "its user may not connect: GRANT CONNECT ON DATABASE …"),
    (
        r"is not currently accepting connections",
        "the database takes no connections: ALTER DATABASE … ALLOW_CONNECTIONS true",
    ),
    (r"no encryption|SSL required|TLS required", "the server wants TLS: write sslmode=require"),
    (r"no pg_hba.conf entry", "the server's pg_hba.conf does not let us in from here"),
    (
        r"received invalid response to \w+ negotiation|expected authentication request from server",
        "it is no Postgres: something else answers at this address; is the port right?",
    ),
    (r"gssencmode value", "leave gssencmode out"),
    (
        r"definition of service .* not found|service file .* not found|in service file",
        "name a service that the file of services has (PGSERVICEFILE, ~/.pg_service.conf), or "
        "leave service and PGSERVICE out",
    ),
    (r"invalid \w+ value", "is a variable of libpq (PGSSLMODE …) set to something else?"),
)


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """Connect with psycopg in autocommit, without prepared statements: a pooler may keep none.

    `options` win over `url`, which wins over our own values.

    Raises:
        ServerUnavailable: The server does not answer, or refuses us.
        ServerRefused: `url` does not fit the server; the message says what to change.
        UserError: `url` is no URL of Postgres.
    """
    url = postgres_url.read(url)  # there is no other way in than the one check
    parameters = _DEFAULTS | conninfo_to_dict(url)
    if parameters.get("sslrootcert") == "system":
        parameters["sslrootcert"] = _authorities()
    try:
        conninfo = make_conninfo("", **parameters)
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, **options)
    except (psycopg.Error, ValueError, OSError) as error:  # ValueError: a host that is no name
        raise unreachable(url, error) from None


def _authorities() -> str:
    """Return the file of the authorities that this machine trusts, or what libpq calls them.

    psycopg's wheel has an OpenSSL of its own, which looks for them where nobody keeps them.
    """
    found = ssl.get_default_verify_paths().cafile  # also SSL_CERT_FILE
    return next((file for file in (found, *_BUNDLES) if file and Path(file).is_file()), "system")


def unreachable(url: str, error: Exception) -> ServerUnavailable:
    """Return the error for a server that does not answer; its message has no password."""
    name, why = server_name(url), _said(url, error)
    return _mistake(url, error) or ServerUnavailable(
        f"cannot reach {name} ({why}): is it running, and is DATABASE_URL right?"
    )


def lost(url: str, error: Exception) -> ServerUnavailable:
    """Return the error for a connection that was lost while it was used."""
    return _mistake(url, error) or ServerUnavailable(f"lost the connection to {server_name(url)}")


def _mistake(url: str, error: Exception) -> ServerRefused | None:
    """Return what must change in DATABASE_URL or on the server, if the error is known to say so."""
    found = hint(str(error))  # a password such as `password` is masked in what we say
    if found is None:
        return None
    return ServerRefused(f"cannot use {server_name(url)}: {found} ({_said(url, error)})")


def hint(text: str) -> str | None:
    """Return what to change where an error's text tells of a known mistake."""
    line = one_line(text)
    return next((hint for pattern, hint in _HINTS if re.search(pattern, line)), None)


def _said(url: str, error: Exception) -> str:
    text = str(error) or type(error).__name__
    parameters = _parameters(url)
    for name in ("password", "sslpassword"):
        if secret := parameters.get(name):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return one_line(text)


def server_name(url: str) -> str:
    """Return "Postgres at host:port/database", without user or password."""
    return _name(_parameters(url))


def _parameters(url: str) -> dict[str, str]:
    try:
        return {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, ValueError):
        return {}


def _name(parameters: Mapping[str, str]) -> str:
    if not parameters:
        return "Postgres"
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = parameters.get("port", "").split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    places = [
        "a socket" if not host or host.startswith("/") else f"{host}:{port}" if port else host
        for host, port in zip(hosts, ports, strict=True)
    ]
    database = parameters.get("dbname")
    return one_line(f"Postgres at {', '.join(places)}" + (f"/{database}" if database else ""))
