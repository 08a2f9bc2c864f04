"""REDIS_URL as hosts, libraries and shells hand it out: read alike by all clients, or refused."""

from __future__ import annotations

import traceback
from typing import Any
from urllib.parse import quote

import kombu
import pytest
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from flower.utils.broker import Broker
from hypothesis import HealthCheck, example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from babylon_tasks.settings.redis_url import RedisUrl, read_redis_url

NEVER = "s3cret"  # in any message


def read(url: str) -> tuple[Any, ...]:
    server = read_redis_url(url)
    return server.host, server.port, server.database, server.user, server.password


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://h", ("h", 6379, 0, None, None)),
        ("redis://h:6380", ("h", 6380, 0, None, None)),
        ("redis://h:/", ("h", 6379, 0, None, None)),
        ("  redis://h/3\n", ("h", 6379, 3, None, None)),
        ("REDIS://h/3/", ("h", 6379, 3, None, None)),
        ("redis://h?db=4", ("h", 6379, 4, None, None)),
        ("redis://h/?db=4", ("h", 6379, 4, None, None)),
        ("redis://h/4?db=4", ("h", 6379, 4, None, None)),
        ("redis://h/?db=", ("h", 6379, 0, None, None)),
        ("redis://:p@h:6379/0", ("h", 6379, 0, None, "p")),
        ("redis://@h", ("h", 6379, 0, None, None)),
        ("redis://:@h", ("h", 6379, 0, None, None)),
        ("redis://user:p@my_redis.internal.", ("my_redis.internal.", 6379, 0, "user", "p")),
        ("redis://us%40er:p%40%2F%25%3A%3F%23%24%26@h", ("h", 6379, 0, "us@er", "p@/%:?#$&")),
        ("redis://:p%C3%A4ss%20word@h", ("h", 6379, 0, None, "päss word")),
        ("redis://:a:b@h", ("h", 6379, 0, None, "a:b")),  # nothing else can be meant
        ("redis://:a@b@h:1/2", ("h", 1, 2, None, "a@b")),
        ("redis://:a+b=&;,$!*'()@h", ("h", 6379, 0, None, "a+b=&;,$!*'()")),
        ("redis://:p@127.0.0.1:6379/15", ("127.0.0.1", 6379, 15, None, "p")),
        ("redis://:p@[::1]:6390/1", ("::1", 6390, 1, None, "p")),
        ("redis://[fe80::1]", ("fe80::1", 6379, 0, None, None)),
        # Upstash, Azure, Heroku, ElastiCache
        ("rediss://default:p@eu1-x.upstash.io", ("eu1-x.upstash.io", 6379, 0, "default", "p")),
        ("rediss://:p%3D@x.redis.cache.windows.net:6380/0",
         ("x.redis.cache.windows.net", 6380, 0, None, "p=")),
        ("rediss://:p@ec2-1-2.compute-1.amazonaws.com:25250",
         ("ec2-1-2.compute-1.amazonaws.com", 25250, 0, None, "p")),
        ("rediss://master.x.euw1.cache.amazonaws.com:6379",
         ("master.x.euw1.cache.amazonaws.com", 6379, 0, None, None)),
    ],
)  # fmt: skip
def test_what_hosts_hand_out_is_read_alike_by_all_clients(url: str, parts: tuple[Any, ...]) -> None:
    assert read(url) == parts
    read_alike(read_redis_url(url))


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", ("required", True, {})),
        ("?ssl_cert_reqs=required", ("required", True, {})),
        ("?ssl_cert_reqs=CERT_REQUIRED", ("required", True, {})),
        ("?ssl_cert_reqs=optional", ("required", True, {})),  # for a client it means the same
        ("?ssl_cert_reqs=CERT_OPTIONAL", ("required", True, {})),
        ("?ssl_cert_reqs=none", ("none", False, {})),
        ("?ssl_cert_reqs=CERT_NONE", ("none", False, {})),
        ("?ssl_cert_reqs=cert_none&ssl_check_hostname=true", ("none", False, {})),
        ("?ssl_check_hostname=False", ("required", False, {})),
        ("?ssl_ca_certs=/e/my%20ca.pem&db=3", ("required", True, {"ssl_ca_certs": "/e/my ca.pem"})),
        ("?ssl_certfile=c+1.pem&ssl_keyfile=k.pem",
         ("required", True, {"ssl_certfile": "c+1.pem", "ssl_keyfile": "k.pem"})),
    ],
)  # fmt: skip
def test_tls_verifies_unless_it_is_told_otherwise(
    query: str, options: tuple[str, bool, dict[str, str]]
) -> None:
    server = read_redis_url(f"rediss://:p@h{query}")
    assert server.tls is not None
    level, check, files = options
    assert server.tls.options() == {
        "ssl_cert_reqs": level,
        "ssl_check_hostname": check,
        **files,
    }
    assert server.plain == f"rediss://:p@h:6379/{server.database}"
    read_alike(server)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "not a Redis URL"),
        ("localhost:6379", "not a Redis URL"),
        ("memory://", "not a Redis URL"),
        ("amqp://u:s3cret@h//", "not a Redis URL"),
        ("redis:s3cret@h", "not a Redis URL"),
        ("redis:/:s3cret@h", "not a Redis URL"),
        ("postgresql://u:s3cret@h/db", "not a Redis URL"),
        ('"redis://:s3cret@h/0"', "in quotes"),
        ("'redis://:s3cret@h/0'", "in quotes"),
        ("redis://:s3cret@h/0'", "in quotes"),
        ("REDIS_URL=redis://:s3cret@h/0", "name of a variable"),
        ("export REDIS_URL=redis://:s3cret@h/0", "name of a variable"),
        ("redis-cli -u redis://:s3cret@h/0", "command of redis-cli"),
        ("redis-cli --tls -u redis://default:s3cret@h:6379", "command of redis-cli"),
        ("/usr/bin/redis-cli -h h -a s3cret", "command of redis-cli"),
        ("h.redis.cache.windows.net:6380,password=s3cret=,ssl=True,abortConnect=False", "rediss://"),
        ("h:6379, abortConnect=false, password=s3cret", "StackExchange.Redis"),
        ("https://eu1-x.upstash.io", "REST API of Upstash"),
        ("http://u:s3cret@h", "REST API of Upstash"),
        ("unix:///s3cret", "unix socket, which is not supported"),
        ("unix://:s3cret@/var/run/redis.sock?db=0", "unix socket"),
        ("redis+socket:///var/run/redis.sock", "unix socket"),
        ("sentinel://:s3cret@h:26379/0", "Sentinels, which are not supported"),
        ("redis+sentinel://:s3cret@h:26379/mymaster/0", "Sentinels"),
        ("sentinel://h1:26379;sentinel://h2:26379", "Sentinels"),
        ("redis://:s3cret@h1;redis://:s3cret@h2", "several servers"),
        ("redis://:s3cret@h1:6379,h2:6379/0", "several servers"),
        ("redis+cluster://:s3cret@h", "a cluster, which is not supported"),
        ("valkey://:s3cret@h", "redis:// instead"),
        ("valkeys://:s3cret@h", "rediss:// instead"),
        ("redis+tls://:s3cret@h", "rediss:// instead"),
        ("redis://:s3cret@", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:s3cret@/0", "names no host"),
        ("redis://s3cret@h:6379/0", "a user and no password"),
        ("redis://s3cret:@h", "a user and no password"),
        ("redis://:s3cret@h:abc/0", "no readable host and port"),
        ("redis://:s3cret@h:0/0", "port"),
        ("redis://:s3cret@h:70000/0", "port"),
        ("redis://:s3cret@h:-1/0", "no readable host"),
        ("redis://:s3cret@[::1", "no readable host"),
        ("redis://:s3cret@::1:6379", "no readable host"),
        ("redis://:s3cret@[::1%25eth0]", "no readable host"),
        ("redis://:s3cret@a..b", "no readable host"),
        ("redis://:s3cret@h h/0", "holds a space"),
        ("redis://:${REDIS_PASSWORD}@h/0", "a variable that nobody has replaced"),
        ("redis://:s3 s3cret@h/0", "holds a space"),
        ("redis://:s3cret\n@h/0", "line break"),
        ("redis://:s3crät s3cret@h/0", "percent-encoded"),
        ("redis://:12/s3cret@h:6379/0", "`/` is %2F"),
        ("redis://:ab/s3cret@h:6379/0", "`/` is %2F"),
        ("redis://user:1?s3cret@h:6379/0", "`?` is %3F"),
        ("redis://user:1#s3cret@h:6379/0", "`#` is %23"),
        ("redis://user:1?s3cret=1&x=2@h:6379/0", "`?` is %3F"),
        ("redis://:100%s3cret@h", "`%` is %25"),
        ("redis://:s3cret%@h", "`%` is %25"),
        ("redis://:s3cret%ff@h", "UTF-8"),
        ("redis://:s3cret@h/db", "number of a database"),
        ("redis://:s3cret@h/-1", "number of a database"),
        ("redis://:s3cret@h/0/1", "number of a database"),
        ("redis://:s3cret@h//0", "number of a database"),
        ("redis://:s3cret@h/99999999999", "number of a database"),
        ("redis://:s3cret@h/4294967296", "number of a database"),
        ("redis://:s3cret@h?db=x", "number of a database"),
        ("redis://:s3cret@h/1?db=2", "another one in `db`"),
        ("redis://:s3cret@h/0#", "`#` is %23"),
        ("redis://:s3cret@h/0#1", "`#` is %23"),
        ("redis://h?password=s3cret", "a parameter that is none of db, ssl_cert_reqs"),
        ("redis://h?family=0", "a parameter that is none of"),
        ("redis://h?ssl=true", "a parameter that is none of"),
        ("redis://h?s3cret", "a parameter that is none of"),
        ("redis://h?db=1&db=1", "twice"),
        ("redis://:s3cret@h?ssl_cert_reqs=none", "rediss:// instead of redis://"),
        ("rediss://:s3cret@h?ssl_cert_reqs=", "ssl_cert_reqs"),
        ("rediss://:s3cret@h?ssl_cert_reqs=no", "none of required, optional and none"),
        ("rediss://:s3cret@h?ssl_check_hostname=s3cret", "neither true nor false"),
        ("rediss://:s3cret@h?ssl_keyfile=k.pem", "no `ssl_certfile`"),
        ("rediss://:s3cret@h?ssl_ca_certs=", "without a value"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name_in_one_line(url: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(redis_url=url).redis()
    message = str(caught.value)
    assert message.startswith("REDIS_URL ")
    assert says in message
    assert "\n" not in message
    assert NEVER not in "".join(traceback.format_exception(caught.value))


def test_no_name_or_repr_shows_the_password() -> None:
    server = read_redis_url("rediss://user:s3cret@[::1]:1/2?ssl_cert_reqs=none")
    assert server.name == "Redis at [::1]:1/2"
    assert NEVER not in repr(server)


# --- any text ---

odd = st.text(st.characters(codec="utf-8"), max_size=6)
printable = st.text(st.sampled_from("aZ0@:/?#%&=;,+ '\"[]{}$\\\t\né"), max_size=8)
password = st.tuples(odd | printable, st.just(NEVER), odd | printable).map("".join)


@st.composite
def encoded(draw: st.DrawFn) -> tuple[str, RedisUrl]:
    """A URL as a careful person writes it, and what it says."""
    host = draw(st.sampled_from(["h", "127.0.0.1", "::1", "fe80::2", "a-b.c_d.example"]))
    port = draw(st.integers(1, 65535))
    database = draw(st.integers(0, 2**31 - 1))
    user = draw(st.none() | odd.filter(bool))
    secret = draw(password)
    tls = draw(st.sampled_from(["", "s"]))
    shown = f"[{host}]" if ":" in host else host
    login = f"{quote(user or '', safe='')}:{quote(secret, safe='')}@"
    where = draw(st.sampled_from([f"/{database}", f"?db={database}", f"/{database}?db={database}"]))
    more = draw(st.sampled_from(["", "ssl_cert_reqs=CERT_NONE"])) if tls else ""
    url = f"redis{tls}://{login}{shown}:{port}{where}"
    url += f"{'&' if '?' in url else '?'}{more}" if more else ""
    return url, RedisUrl(host, port, database, user, secret, None)


pieces = st.sampled_from(
    ["redis://", "rediss://", "sentinel://", "redis-cli -u ", "@", ":", "/", "?", "#", "&", ";",
     ",", "[", "]", "::1", "h", "6379", "0", "db=", "ssl_cert_reqs=", "none", "ssl_ca_certs=", "%",
     "%40", "%C3", " ", "'", '"', "\n", "é", "\x00", "=", "password=", "localhost", "..", "-"]
)  # fmt: skip
careless = st.tuples(
    st.sampled_from(["redis://", "rediss://", ""]), st.sampled_from(["", "user"]), st.just(":"),
    password, st.just("@"), st.lists(pieces, max_size=6).map("".join),
).map("".join)  # fmt: skip
anything = st.lists(pieces | password | odd, max_size=12).map("".join)


def refused_or_read(text: str) -> None:
    """Refused in one line without the password, or read alike by all."""
    server, refusal = read_or_refusal(text)
    if server is None:
        assert str(refusal).isprintable()  # so it is one line
        if NEVER in text:
            assert NEVER not in "".join(traceback.format_exception(refusal))
        return
    if NEVER in (server.password or ""):
        assert NEVER not in server.name + repr(server)
    read_alike(server)


def read_or_refusal(text: str) -> tuple[RedisUrl | None, UserError | None]:
    try:
        return read_redis_url(text), None
    except UserError as error:
        return None, error


def read_as_written(case: tuple[str, RedisUrl]) -> None:
    """A careful person's URL is never refused, and says what it says."""
    url, said = case
    server = read_redis_url(url)
    assert (server.host, server.port, server.database) == (said.host, said.port, said.database)
    assert (server.user, server.password) == (said.user, said.password)
    assert (server.tls is not None) == url.startswith("rediss")
    read_alike(server)


@example("redis://user:1?s3cret=1@h")
@example("redis://:1/s3cret@h")
@given(careless | anything)
def test_any_text_is_refused_or_read_alike(text: str) -> None:
    refused_or_read(text)


@given(encoded())
def test_an_encoded_url_is_read_as_written(case: tuple[str, RedisUrl]) -> None:
    read_as_written(case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@budget(max_examples=85_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(careless | anything)
def test_85_000_texts_are_refused_or_read_alike(text: str) -> None:
    refused_or_read(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@budget(max_examples=15_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(encoded())
def test_15_000_encoded_urls_are_read_as_written(case: tuple[str, RedisUrl]) -> None:
    read_as_written(case)


_app = Celery(set_as_current=False)


def read_alike(server: RedisUrl) -> None:
    """kombu, Celery's results, redis-py and Flower: the same server, user, password and TLS."""
    tls = server.tls.options() if server.tls else None
    said = (server.host, server.port, server.database, server.user, server.password)

    connection = kombu.Connection(server.plain, ssl=tls or False, transport="redis")
    database = int(connection.virtual_host or 0)
    login = connection.userid, connection.password
    assert (connection.hostname, connection.port, database, *login) == said
    if server.password and NEVER in server.password:
        assert NEVER not in connection.as_uri()

    _app.conf.redis_backend_use_ssl = tls
    same(RedisBackend(app=_app, url=server.plain).connparams, server)
    same(redis.Redis(**server.client_options()).connection_pool.connection_kwargs, server)
    broker = Broker(server.plain, broker_options={}, broker_use_ssl=tls or False)
    same(broker.redis.connection_pool.connection_kwargs, server)


def same(options: dict[str, Any], server: RedisUrl) -> None:
    where = options["host"], options["port"], options["db"]
    login = options.get("username") or None, options.get("password")
    assert where == (server.host, server.port, server.database)
    assert login == (server.user, server.password)
    if server.tls:
        given = {name: options[name] for name in server.tls.options()}
        levels = {0: "none", 2: "required"}
        given["ssl_cert_reqs"] = levels.get(given["ssl_cert_reqs"], given["ssl_cert_reqs"])
        assert given == server.tls.options()
