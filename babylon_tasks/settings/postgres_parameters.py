"""What DATABASE_URL may say: libpq's parameters, those values that both drivers can keep."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping

from babylon_tasks.errors import UserError

_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "primary"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable", "random"),
    "sslnegotiation": ("postgres", "direct"),
    "sslcertmode": ("allow", "disable", "require"),
    "sslcompression": ("0", "1"),
    "sslsni": ("1",),
    "keepalives": ("0", "1"),
    "gssdelegation": ("0",),
    "ssl_min_protocol_version": ("TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1.2", "TLSv1.3"),
}
_INSTEAD = {
    ("sslmode", "no-verify"): "write sslmode=require",
    ("sslmode", "true"): "write sslmode=require",
    ("sslmode", "verify_full"): "write sslmode=verify-full",
    ("sslmode", "verify_ca"): "write sslmode=verify-ca",
}
_WHOLE_NUMBERS = (
    "connect_timeout",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
# asyncpg, which reads the traces, cannot keep what these promise.
_ONE_DRIVER = {
    "require_auth": "sslmode=verify-full keeps the password from strangers",
    "requirepeer": "the folder of the socket says who may listen there",
    "oauth_issuer": "give a password",
    "oauth_client_id": "give a password",
    "oauth_client_secret": "give a password",
    "oauth_scope": "give a password",
    "scram_client_key": "give a password",
    "scram_server_key": "give a password",
    "gsslib": "leave it out",
    "sslkeylogfile": "leave it out",
    "replication": "leave it out",
}
_INT32 = 2**31 - 1


def check(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters; with a `sslrootcert` and no `sslmode`, the server is verified.

    Empty ones are left out: for libpq they are not set, and its environment variables count.

    Raises:
        UserError: A value is wrong, or one of the drivers cannot do what it says.
    """
    given = {key: value for key, value in parameters.items() if value}
    for key, value in given.items():
        _check_value(key, value)
    if "," in given.get("port", ""):  # `h1,h2:5433`
        given["port"] = ",".join(port or "5432" for port in given["port"].split(","))
    _check_hosts(given)
    _check_options(given.get("options", ""))
    if "sslrootcert" in given and "sslmode" not in given and not os.environ.get("PGSSLMODE"):
        given["sslmode"] = "verify-full"
    weak = given.get("sslmode") in ("disable", "allow", "prefer")
    if "sslrootcert" in given and weak:
        raise UserError(
            "DATABASE_URL has a sslrootcert, but its sslmode verifies nothing: write "
            "sslmode=verify-full"
        )
    if given.get("sslrootcert") == "system" and given.get("sslmode") in ("require", "verify-ca"):
        raise UserError("DATABASE_URL: sslrootcert=system needs sslmode=verify-full")
    if given.get("sslnegotiation") == "direct" and ("sslmode" not in given or weak):
        raise UserError("DATABASE_URL: sslnegotiation=direct needs sslmode=require or verify-full")
    return given


def _check_value(key: str, value: str) -> None:
    if "\0" in value or (key != "password" and not value.isprintable()):
        raise UserError(f"DATABASE_URL: {key} has a character that cannot be printed")
    if key in _ONE_DRIVER:
        raise UserError(f"DATABASE_URL: {key} is not supported: {_ONE_DRIVER[key]}")
    if key in _CHOICES and value not in _CHOICES[key]:
        instead = _INSTEAD.get((key, value)) or f"it may be {', '.join(_CHOICES[key])}"
        raise UserError(f"DATABASE_URL: {key} has a value that is not supported: {instead}")
    if key in _WHOLE_NUMBERS and not (re.fullmatch(r"[0-9]+", value) and int(value) <= _INT32):
        raise UserError(f"DATABASE_URL: {key} must be a whole number of seconds")
    if key == "client_encoding" and value.lower().replace("-", "") not in ("utf8", "auto"):
        raise UserError("DATABASE_URL: client_encoding must be UTF8, or be left out")


def _check_hosts(given: Mapping[str, str]) -> None:
    """Check hosts, addresses and ports, of which there may be several.

    No message shows them: in a URL that is not percent-encoded they may be a part of the password.
    """
    hosts = given["host"].split(",") if "host" in given else []
    addresses = given["hostaddr"].split(",") if "hostaddr" in given else []
    ports = given["port"].split(",") if "port" in given else []
    if not all(host and _is_host(host) for host in hosts):
        raise UserError(
            "DATABASE_URL has a host that is none: a name, an address, or the folder of a socket "
            "that begins with /; its port is a parameter of its own"
        )
    if any(host.startswith("@") for host in hosts):
        raise UserError("DATABASE_URL: an abstract socket (host=@…) is not supported: use a folder")
    if not all(_is_address(address) for address in addresses):
        raise UserError("DATABASE_URL: hostaddr must be an IP address; a name belongs into host")
    if hosts and addresses and len(hosts) != len(addresses):
        raise UserError("DATABASE_URL must have as many addresses in hostaddr as it has hosts")
    if not all(_is_port(port) for port in ports):
        raise UserError("DATABASE_URL has a port that is none: a number from 1 to 65535")
    if len(ports) > 1 and len(ports) != max(len(hosts), len(addresses), 1):
        raise UserError("DATABASE_URL must have one port, or as many as it has hosts")


def _is_host(host: str) -> bool:
    if host.startswith(("/", "@")):
        return True
    if ":" in host:
        return _is_address(host)
    labels = host.removesuffix(".").split(".")
    return all(re.fullmatch(r"[^\s/@?#\[\]\\'\"<>|=&;{}$!]{1,63}", label) for label in labels)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def _check_options(options: str) -> None:
    """Refuse another search_path: what it names would be passed over, and public be used."""
    pattern = r"search[_-]path\s*=\s*((?:\\.|[^\s\\])*)"
    for match in re.finditer(pattern, options, re.IGNORECASE):
        path = match[1].replace("\\", "").replace('"', "").replace(" ", "").split(",")
        if [name for name in path if name != "$user"] != ["public"]:
            raise UserError(
                "DATABASE_URL sets search_path in options, but Babylon's tables are read from the "
                "schema public: leave it out"
            )
