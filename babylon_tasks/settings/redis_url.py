"""One reading of REDIS_URL for all clients: Celery's two, redis-py and Flower.

Each of them reads a URL in its own way, and none complains about a parameter that it does not know.
So the URL is read once, here; each client gets the parts, or a plain URL without parameters.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

from babylon_tasks.errors import UserError

_FORM = "redis://:password@host:6379/0, or rediss://… for TLS"
_ENCODE = (
    "write special characters of the password percent-encoded (`@` is %40, `#` is %23, `/` is "
    "%2F, `?` is %3F, `%` is %25)"
)
_PORT = 6379
_MOST_DATABASES = 2**31
_LONGEST_HOST = 253

CLUSTER = (
    "a cluster, which is not supported, because Celery needs several keys at once: take a Redis "
    "with cluster mode disabled"
)
_SENTINEL = (
    "Sentinels, which are not supported: write the URL of a name that follows the master (a "
    f"service, or a proxy such as HAProxy), {_FORM}"
)
_SOCKET = f"a unix socket, which is not supported: write {_FORM}"
_REST = f"the REST API of Upstash: take the Redis URL from its console, {_FORM}"
_TLS = "TLS by a scheme of its own: write rediss:// instead"
_VALKEY = "Valkey, which speaks the same protocol: write {} instead"

# What others call a Redis, by scheme.
_OTHERS = {
    **dict.fromkeys(("http", "https"), _REST),
    **dict.fromkeys(("unix", "redis+socket", "redis+unix", "rediss+socket"), _SOCKET),
    **dict.fromkeys(
        ("sentinel", "redis+sentinel", "rediss+sentinel", "redis-sentinel", "rediss-sentinel"),
        _SENTINEL,
    ),
    **dict.fromkeys(("redis+cluster", "rediss+cluster", "redis-cluster"), CLUSTER),
    **dict.fromkeys(("redis+tls", "redis+ssl"), _TLS),
    "valkey": _VALKEY.format("redis://"),
    "valkeys": _VALKEY.format("rediss://"),
}
_VERIFY = {"none": False, "optional": True, "required": True}  # a client checks with both
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PARAMETERS = ("db", "ssl_cert_reqs", "ssl_check_hostname", *_FILES)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to talk TLS: certificate and host name are verified unless the URL says otherwise."""

    verify: bool = True
    check_host_name: bool = True
    files: dict[str, str] = field(default_factory=dict)  # by redis-py's and Celery's names

    def options(self) -> dict[str, Any]:
        """Return the options of redis-py, Celery and Flower alike."""
        return {
            "ssl_cert_reqs": "required" if self.verify else "none",
            "ssl_check_hostname": self.verify and self.check_host_name,
            **self.files,
        }


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where the broker is. Its `repr` and its name hold no password."""

    host: str
    port: int
    database: int
    user: str | None
    password: str | None = field(repr=False)
    tls: Tls | None

    @property
    def plain(self) -> str:
        """The URL without parameters, with its password: for Celery and Flower, never to print."""
        scheme = "rediss" if self.tls else "redis"
        login = ""
        if self.password is not None:
            login = f"{quote(self.user or '', safe='')}:{quote(self.password, safe='')}@"
        return f"{scheme}://{login}{self._address}/{self.database}"

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"Redis at {self._address}/{self.database}"

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of redis-py's `Redis`."""
        return {
            "host": self.host,
            "port": self.port,
            "db": self.database,
            "username": self.user,
            "password": self.password,
            **({"ssl": True, **self.tls.options()} if self.tls else {}),
        }

    @property
    def _address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_redis_url(text: str) -> RedisUrl:
    """Read the text of REDIS_URL.

    Raises:
        UserError: It cannot be used; the message says what to write, and shows no part of the text
            that may belong to a password.
    """
    text = text.strip()
    _refuse_other_forms(text)
    scheme, _, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, address = authority.rpartition("@")
    if "@" in rest[len(authority) :]:
        # Raw, and behind the first of / ? #: a part of the password stands there.
        _refuse(f"REDIS_URL cannot be read: {_ENCODE}")
    host, port = _address(address)
    user, password = _login(login) if at else (None, None)
    # Only now, since urlsplit's own errors show what they refuse.
    parts = urlsplit(f"{scheme}://host{rest[len(authority) :]}")
    if parts.fragment or text.endswith("#"):
        _refuse(f"REDIS_URL has a `#`: {_ENCODE}")
    query = _query(parts.query)
    return RedisUrl(
        host=host,
        port=port,
        database=_database(parts.path, query.get("db")),
        user=user,
        password=password,
        tls=_tls(scheme.lower(), query),
    )


def _refuse(why: str) -> NoReturn:
    raise UserError(why) from None


def _refuse_other_forms(text: str) -> None:
    """Refuse by name what hosts, libraries and shells hand out and no client of ours reads."""
    if text[:1] in "\"'`" or text[-1:] in "\"'`":
        _refuse("REDIS_URL is in quotes: remove them")
    if re.match(r"(export\s+)?\w+=", text) and "://" in text:
        _refuse("REDIS_URL begins with the name of a variable: give the URL alone")
    if re.match(r"(\S*/)?redis-cli\b", text):
        _refuse(f"REDIS_URL is a command of redis-cli: give the URL behind `-u` alone, {_FORM}")
    if "://" not in text and re.search(r",\s*\w+\s*=", text):
        _refuse(
            "REDIS_URL is a connection string of StackExchange.Redis, as Azure gives it: write "
            "rediss://:password@host:6380/0, and the password percent-encoded (`=` is %3D)"
        )
    if "${" in text or "$(" in text:
        _refuse("REDIS_URL holds a variable that nobody has replaced: write its value")
    if not text.isprintable() or not text.isascii() or re.search(r"\s", text):
        _refuse(
            "REDIS_URL holds a space, a line break or a character that no URL may hold: write it "
            f"percent-encoded. It must look like {_FORM}"
        )
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in _OTHERS:
        _refuse(f"REDIS_URL names {_OTHERS[scheme]}")
    if scheme not in ("redis", "rediss"):
        _refuse(f"REDIS_URL is not a Redis URL; it must look like {_FORM}")
    if re.search(r"[;,]\s*(rediss?|sentinel)://", text, re.I):
        _refuse("REDIS_URL names several servers: write the URL of the one that is the master")


def _address(text: str) -> tuple[str, int]:
    """Read `host[:port]`; an IPv6 address stands in brackets."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(\d*))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]]*)(?::(\d*))?", text, re.ASCII)
    if bracketed:
        host, port = bracketed.groups()
        known = _is_ipv6(host)
    elif plain:
        host, port = plain.groups()
        if not host:
            _refuse(f"REDIS_URL names no host: it must look like {_FORM}")
        labels = host.removesuffix(".").split(".")
        known = len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, labels))
    elif "," in text:
        _refuse("REDIS_URL names several servers: write the URL of the one that is the master")
    else:
        known, host, port = False, "", None
    if not known:
        # What looks like the host may be a part of the password, so it is not shown.
        _refuse(
            f"REDIS_URL has no readable host and port: {_ENCODE}, and an IPv6 address in brackets. "
            f"It must look like {_FORM}"
        )
    number = int(port[:6]) if port else _PORT
    if not 0 < number < 65536:
        _refuse(f"REDIS_URL has a port that is none: it must look like {_FORM}")
    return host.lower(), number  # some clients do that by themselves


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone, which the clients read differently


def _login(text: str) -> tuple[str | None, str | None]:
    """Read `user:password`, `:password` or nothing."""
    user, _, password = text.partition(":")
    if not password:
        if not user:
            return None, None
        _refuse(
            "REDIS_URL has a user and no password: write redis://:password@host, or "
            "redis://user:password@host for a user of an ACL"
        )
    return _decoded(user) or None, _decoded(password)


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        _refuse(f"REDIS_URL holds a `%` that stands for no character: {_ENCODE}")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse(
            "REDIS_URL is percent-encoded in another way than UTF-8: encode the password as UTF-8"
        )


def _query(text: str) -> dict[str, str]:
    pairs = [(_decoded(k), _decoded(v)) for k, v in _pairs(text)]
    if any(name not in _PARAMETERS for name, _ in pairs):
        # Which one is not shown: a password's `?` may have begun it.
        _refuse(f"REDIS_URL has a parameter that is none of {', '.join(_PARAMETERS)}: remove it")
    query = dict(pairs)
    if len(query) < len(pairs):
        _refuse("REDIS_URL has a parameter twice: remove one")
    return query


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split `a=b&c=d` and leave it encoded."""
    return [(k, v) for k, _, v in (part.partition("=") for part in text.split("&")) if k or v]


def _database(path: str, parameter: str | None) -> int:
    numbers = {n for n in (path.strip("/"), parameter) if n}
    if path.strip("/") not in (path, path[1:], path[1:-1]) or not all(
        re.fullmatch(r"[0-9]{1,10}", number) for number in numbers
    ):
        _refuse(f"REDIS_URL must end with the number of a database, such as /0: {_ENCODE}")
    if len({int(n) for n in numbers}) > 1:
        _refuse("REDIS_URL names one database in its path and another one in `db`: remove one")
    number = int(numbers.pop()) if numbers else 0
    if number >= _MOST_DATABASES:
        _refuse("REDIS_URL must end with the number of a database, such as /0")
    return number


def _tls(scheme: str, query: dict[str, str]) -> Tls | None:
    given = [name for name in query if name.startswith("ssl_")]
    if scheme == "redis":
        if given:
            _refuse(f"REDIS_URL has `{given[0]}` but no TLS: write rediss:// instead of redis://")
        return None
    level = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if level not in _VERIFY:
        _refuse("REDIS_URL has an `ssl_cert_reqs` that is none of required, optional and none")
    check = query.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false", "1", "0", "yes", "no"):
        _refuse("REDIS_URL has an `ssl_check_hostname` that is neither true nor false")
    if "ssl_keyfile" in query and "ssl_certfile" not in query:
        _refuse(
            "REDIS_URL has `ssl_keyfile` and no `ssl_certfile`: a client's certificate needs both"
        )
    files = {name: query[name] for name in _FILES if name in query}
    if not all(files.values()):
        _refuse("REDIS_URL has a parameter without a value: give a path, or remove it")
    return Tls(_VERIFY[level], check in ("true", "1", "yes"), files)
