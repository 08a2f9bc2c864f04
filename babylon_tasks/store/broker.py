"""Redis as the broker: a client for a while, whether its user may do what the roles need, errors.

Every error becomes one line. Where a person must change something it is a `UserError`. Where Redis
is away, or refuses writes for a while (a failover, a full memory or disk), it is a
`ServerUnavailable`, and whoever runs tries again.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.settings.redis_url import CLUSTER, RedisUrl
from babylon_tasks.text import one_line

# Before every key of ours. Celery's results have no more than that; the queues have the database's
# id behind it (`identity.key_prefix`).
KEYS = "babylon:"

_PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 2.0
_CLUSTER = (
    exceptions.ClusterCrossSlotError,
    exceptions.ClusterDownError,
    exceptions.CrossSlotTransactionError,
    exceptions.AskError,  # and MOVED
    exceptions.TryAgainError,
)
# First words of what Redis answers while it takes no writes, and may take them soon.
_FOR_A_WHILE = ("READONLY", "MISCONF", "NOREPLICAS", "OOM", "LOADING", "MASTERDOWN", "BUSY")


@contextmanager
def client(server: RedisUrl, timeout_seconds: float = _PATIENCE_SECONDS) -> Iterator[redis.Redis]:
    """Give a client of the broker for a while; it knows nothing of Celery's prefix.

    Raises:
        UserError: Redis refuses us, or we it; the message says what to do.
        ServerUnavailable: Redis does not answer.
    """
    made = redis.Redis(
        **server.client_options(),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        _require_files(server)
        yield made
    except (redis.RedisError, OSError) as error:
        raise explained(server, error) from None
    finally:
        made.close()


def require_usable(server: RedisUrl, prefix: str) -> None:
    """Try what the roles do, below the deployment's prefix; what is written goes again.

    Raises:
        UserError: The user lacks a right, which is named, or Redis is none that Celery can use.
        ServerUnavailable: Redis does not answer, or takes no writes now.
    """
    lacking: dict[str, None] = {}  # in the order of the commands
    probe = f"{prefix}probe:{uuid.uuid4().hex}"
    with client(server) as made:
        connection: Any = made  # redis-py's own types leave these methods out
        for arguments in _commands(probe):
            with _noting(lacking, arguments[0]):
                connection.execute_command(*arguments)
        with _noting(lacking, "multi"), connection.pipeline() as pipe:
            pipe.watch(probe)
            pipe.multi()
            pipe.llen(probe)
            pipe.execute()
        with _noting(lacking, "psubscribe"), connection.pubsub() as channel:
            channel.psubscribe(f"{probe}/*")
            channel.get_message(timeout=_PATIENCE_SECONDS)
        with _noting(lacking, "subscribe"), connection.pubsub() as channel:
            channel.subscribe(probe)
            channel.get_message(timeout=_PATIENCE_SECONDS)
    if lacking:
        user = one_line(server.user or "default", 60)
        raise UserError(
            f"the user {user} of {server.name} may not do what Celery needs: "
            f"{', '.join(lacking)}. Grant it: ACL SETUSER {user} ~{KEYS}* &* +@all -@dangerous"
        )


def _commands(probe: str) -> list[tuple[str | int, ...]]:
    """Return what Celery, kombu and Flower send, on keys of the probe's own."""
    keys = {kind: f"{probe}:{kind}" for kind in ("list", "other", "set", "hash", "sorted", "text")}
    result = f"{KEYS}celery-task-meta-{uuid.uuid4().hex}"
    scripted = "redis.call('time') return redis.call('exists', KEYS[1])"
    return [
        ("ping",),
        ("lpush", keys["list"], "1", "2", "3", "4"),
        ("expire", keys["list"], 60),
        ("pexpire", keys["list"], 60_000),
        ("rpush", keys["list"], "0"),
        ("llen", keys["list"]),
        ("ltrim", keys["list"], -4, -1),
        ("rpop", keys["list"]),
        ("brpop", keys["list"], keys["other"], 1),
        ("sadd", keys["set"], "1", "2"),
        ("smembers", keys["set"]),
        ("srem", keys["set"], "1", "2"),
        ("hset", keys["hash"], "a", "1"),
        ("hget", keys["hash"], "a"),
        ("hdel", keys["hash"], "a"),
        ("zadd", keys["sorted"], 1, "a"),
        ("zrange", keys["sorted"], 0, -1),
        ("zrem", keys["sorted"], "a"),
        ("set", keys["text"], "1", "nx", "px", 60_000),
        ("exists", keys["text"]),
        ("script", "load", "return 1"),
        ("eval", scripted, 1, keys["text"]),
        ("evalsha", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 1, keys["text"]),  # `return 1`
        ("setex", result, 60, "1"),
        ("get", result),
        ("mget", result, keys["text"]),
        ("publish", probe, "1"),
        ("del", result, *keys.values()),
    ]


@contextmanager
def _noting(lacking: dict[str, None], command: str | int) -> Iterator[None]:
    """Note the right that the user lacks, and go on with the next command."""
    try:
        yield
    except exceptions.NoPermissionError as error:
        text = str(error).lower()
        if re.search("one of the keys|access a key", text):
            lacking[f"keys {KEYS}*"] = None
        elif re.search("one of the channels|access a channel", text):
            lacking["all channels"] = None  # a pattern must be granted by the very same pattern
        else:
            named = re.search(r"run the '(\S+)' command", text)  # also one that redis-py sends
            lacking[named[1] if named else str(command)] = None


def explained(server: RedisUrl, error: Exception) -> UserError:
    """Return the error of a client of ours as one line that says what to do."""
    for cause in _chain(error):
        why = _cause(server, cause)
        if why:
            return UserError(f"{server.name} {why}")
    text = one_line(str(error), 200)
    if text.startswith(_FOR_A_WHILE) or getattr(error, "status_code", None) in _FOR_A_WHILE:
        return ServerUnavailable(
            f"{server.name} takes no writes now ({text}): is it a replica, or is its memory or "
            "disk full?"
        )
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        if server.tls is None and _speaks_tls(server):
            return UserError(f"{server.name} speaks TLS: write rediss:// in REDIS_URL")
        if server.tls and _speaks_plainly(server):
            return UserError(f"{server.name} speaks no TLS: write redis:// in REDIS_URL")
        alert = _alert(server)
        if alert:
            return UserError(
                f"{server.name} ends our TLS ({alert}): if it asks for a client's certificate, add "
                "ssl_certfile and ssl_keyfile to REDIS_URL"
            )
    if isinstance(error, redis.ResponseError):
        return UserError(f"{server.name} refuses what Celery needs ({text})")
    why = text or type(error).__name__
    return ServerUnavailable(
        f"cannot reach {server.name} ({why}): is it running, and is REDIS_URL right?"
    )


def _cause(server: RedisUrl, error: BaseException) -> str | None:
    """Return what a person must change, or None where the error does not tell."""
    text = str(error)
    match error:
        case exceptions.NoPermissionError():
            return f"does not let its user do this ({one_line(text, 200)}): see `babylon doctor`"
        case exceptions.AuthenticationError() | exceptions.AuthenticationWrongNumberOfArgsError():
            return "refuses the user or the password of REDIS_URL"
        case exceptions.InvalidResponse():
            return "is no Redis: something else answers at this address; is the port right?"
        case ssl.SSLCertVerificationError():
            return (
                f"has a certificate that is not trusted ({error.verify_message}): add "
                "?ssl_ca_certs=/path/to/ca.pem to REDIS_URL, or ?ssl_cert_reqs=none to trust any"
            )
        case exceptions.MasterDownError():
            return None
    if isinstance(error, _CLUSTER) or "is not allowed in cluster mode" in text:
        return f"is {CLUSTER}"
    if "unknown command" in text.lower():
        return f"does not know a command ({one_line(text, 80)}): is it a Sentinel, or a proxy?"
    if "DB index" in text:
        return f"has no database {server.database}: does REDIS_URL end with the right number?"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _require_files(server: RedisUrl) -> None:
    """Refuse certificates that cannot be read, which redis-py would take for a server away."""
    if server.tls is None:
        return  # a context reads the authorities of the machine, which takes 25 ms
    try:
        _context(server)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the certificates that REDIS_URL names cannot be read: {one_line(str(error), 200)}"
        ) from None


def _context(server: RedisUrl) -> ssl.SSLContext:
    """Return a context for a look at the server, which verifies nothing."""
    files, context = server.tls.files if server.tls else {}, ssl.create_default_context()
    if "ssl_ca_certs" in files:
        context.load_verify_locations(files["ssl_ca_certs"])
    if "ssl_certfile" in files:
        context.load_cert_chain(
            files["ssl_certfile"],
            files.get("ssl_keyfile"),
            password=lambda: "",  # else OpenSSL would ask the terminal
        )
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _speaks_tls(server: RedisUrl) -> bool:
    with contextlib.suppress(OSError), _line(server) as line, _context(server).wrap_socket(line):
        return True
    return False


def _alert(server: RedisUrl) -> str | None:
    """Return why the server ends a TLS connection, if it does: the client's writing hides it."""
    if server.tls is None:
        return None
    try:
        with _line(server) as line, _context(server).wrap_socket(line) as secure:
            secure.recv(1)
    except ssl.SSLError as error:
        return error.reason if "ALERT" in (error.reason or "") else None
    except OSError:
        return None
    return None


def _speaks_plainly(server: RedisUrl) -> bool:
    with contextlib.suppress(OSError), _line(server) as line:
        line.sendall(b"PING\r\n")
        return line.recv(1) in (b"+", b"-")  # an answer or an error, such as NOAUTH
    return False


def _line(server: RedisUrl) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=_LOOK_SECONDS)
