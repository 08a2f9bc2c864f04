"""asyncpg's arguments for the server on which a psycopg connection is.

libpq alone reads DATABASE_URL, PG* variables, service and password files, tries several hosts and
decides about TLS. asyncpg is told what came of it, so the two cannot read one URL in two ways.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

# Parameters that asyncpg passes on to the server, as libpq does.
_SERVER_SETTINGS = ("options", "application_name")
_FALLBACK = "fallback_application_name"


def arguments(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return the arguments for `asyncpg.connect`; they hold the password.

    Raises:
        OSError, ssl.SSLError: A file of a certificate or key cannot be read.
    """
    options = connection.pgconn.info
    parameters = {
        option.keyword.decode(): option.val.decode()
        for option in options
        if option.val is not None and option.val != b""
    }
    info = connection.info
    socket = info.host.startswith("/")
    parameters |= {
        "host": info.host,
        "hostaddr": info.host if socket else info.hostaddr or info.host,
        "port": str(info.port),
        "user": info.user,
        "password": info.password,
        "dbname": info.dbname,
    }
    return of_parameters(parameters, encrypted=connection.pgconn.ssl_in_use)


def of_parameters(parameters: Mapping[str, str], *, encrypted: bool) -> dict[str, Any]:
    """Return the arguments for libpq's parameters of one server, and whether it speaks TLS there.

    Raises:
        OSError, ssl.SSLError: A file of a certificate or key cannot be read.
    """
    settings = {name: parameters[name] for name in _SERVER_SETTINGS if name in parameters}
    if "application_name" not in settings and _FALLBACK in parameters:
        settings["application_name"] = parameters[_FALLBACK]
    return {
        "host": parameters.get("hostaddr") or parameters["host"],
        "port": int(parameters["port"]),
        "user": parameters["user"],
        # Not None: asyncpg would look into PGPASSWORD and a password file by itself.
        "password": parameters.get("password", ""),
        "database": parameters["dbname"],
        "ssl": tls_context(parameters) if encrypted else False,
        "direct_tls": encrypted and parameters.get("sslnegotiation") == "direct",
        "server_settings": settings,
        "target_session_attrs": "any",  # libpq has chosen the server
        "krbsrvname": parameters.get("krbsrvname", "postgres"),
    }


class _NamedContext(ssl.SSLContext):
    """Verifies and names the host of DATABASE_URL, since asyncpg connects to its address."""

    server_name: str | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Wrap under the name of the host."""
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


def tls_context(parameters: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that verifies what libpq verifies for these parameters.

    `channel_binding=require` ties libpq's login to the server's certificate, which asyncpg cannot;
    so its connection verifies the certificate instead.

    Raises:
        OSError, ssl.SSLError: A file cannot be read.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = parameters.get("host") or None
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    mode, root = parameters.get("sslmode", "prefer"), _file(parameters, "sslrootcert", "root.crt")
    bound = parameters.get("channel_binding") == "require" and mode != "verify-full"
    if root == "system" or (bound and not root):
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif root:
        context.load_verify_locations(cafile=root)
    if root or bound:
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = mode == "verify-full" or bound
    _load_revoked(context, parameters)
    certificate = _file(parameters, "sslcert", "postgresql.crt")
    # Where the file is not there, libpq shows no certificate.
    shown = certificate and parameters.get("sslcertmode") != "disable"
    if certificate and shown and Path(certificate).exists():
        key = _file(parameters, "sslkey", "postgresql.key")
        password = parameters.get("sslpassword", "")
        context.load_cert_chain(certificate, key, password=lambda: password)
    context.minimum_version = _version(parameters.get("ssl_min_protocol_version", "TLSv1.2"))
    if newest := parameters.get("ssl_max_protocol_version"):
        context.maximum_version = _version(newest)
    context.set_alpn_protocols(["postgresql"])
    return context


def _load_revoked(context: ssl.SSLContext, parameters: Mapping[str, str]) -> None:
    revoked, folder = _file(parameters, "sslcrl", "root.crl"), parameters.get("sslcrldir")
    if context.verify_mode == ssl.CERT_REQUIRED and (revoked or folder):
        context.load_verify_locations(cafile=revoked, capath=folder)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _file(parameters: Mapping[str, str], key: str, default: str) -> str | None:
    """Return the file that a parameter names, or libpq's default if that is there."""
    if named := parameters.get(key):
        return named
    try:
        file = Path.home() / ".postgresql" / default
    except RuntimeError:  # nobody's home
        return None
    return str(file) if file.is_file() else None


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]
