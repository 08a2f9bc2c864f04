"""What Redis there is: with TLS, with users of little rights, a cluster, a replica, none at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.settings.redis_url import read_redis_url
from babylon_tasks.store.broker import require_usable
from tests.certificates import Authority
from tests.chaos.ports import quiet_port
from tests.redis_server import RedisServer, redis_server

PREFIX = "babylon:1:"
PASSWORD = "s3cret@/:?#[]%&+ é"
ENCODED = quote(PASSWORD, safe="")


def refusal(url: str) -> str:
    """What a role says of it, in one line and without the password; nothing if it is usable."""
    try:
        require_usable(read_redis_url(url), PREFIX)
    except UserError as error:
        text = str(error)
    else:
        return ""
    assert text.isprintable()
    assert "s3cret" not in text
    return text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis7")) as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def test_a_user_is_asked_for_what_celery_needs(server: RedisServer) -> None:
    acl = server.admin.acl_setuser
    everything = {"enabled": True, "passwords": [f"+{PASSWORD}"], "categories": ["+@all"]}

    def says(login: str = f"u:{ENCODED}@") -> str:
        return refusal(server.url(login))

    assert says("") == ""
    # As Redis 7 makes a user without `&…`: `~* +@all`.
    acl("u", **everything, keys=["*"], reset=True)
    assert "the user u of Redis at 127.0.0.1" in says()
    assert "needs: all channels. Grant it: ACL SETUSER u ~babylon:*" in says()
    # A pattern is granted by the same pattern only, and Celery subscribes to patterns.
    acl("u", **everything, keys=["*"], channels=["babylon:*"], reset=True)
    assert "needs: all channels." in says()
    acl("u", **everything, keys=["other:*"], channels=["*"], reset=True)
    assert "needs: keys babylon:*." in says()
    acl("u", **everything, keys=["*"], channels=["*"], commands=["-publish", "-eval", "-brpop"])
    assert "needs: brpop, eval, publish." in says()
    acl("u", **{**everything, "categories": ["+@read"]}, keys=["*"], channels=["*"], reset=True)
    assert "needs: ping, lpush, expire" in says()
    # What the line and docs/deploying.md tell to grant.
    granted = {**everything, "categories": ["+@all", "-@dangerous"]}
    acl("u", **granted, keys=["babylon:*"], channels=["*"], reset=True)
    assert says() == ""
    assert "refuses the user or the password" in says("u:wrong@")
    assert "refuses the user or the password" in says(f"nobody:{ENCODED}@")
    assert "has no database 99" in refusal(server.url(database=99))
    assert [key for key in server.admin.scan_iter() if b"probe" in key] == []


def test_a_redis_that_takes_no_writes_now_is_waited_for(server: RedisServer) -> None:
    def waits_for(change: dict[str, str], back: dict[str, str], why: str) -> None:
        for name, value in change.items():
            server.admin.config_set(name, value)
        with pytest.raises(ServerUnavailable, match=f"takes no writes now .*{why}"):
            require_usable(read_redis_url(server.url()), PREFIX)
        for name, value in back.items():
            server.admin.config_set(name, value)
        assert refusal(server.url()) == ""

    waits_for({"maxmemory": "1"}, {"maxmemory": "0"}, "maxmemory")
    waits_for({"min-replicas-to-write": "1"}, {"min-replicas-to-write": "0"}, "NOREPLICAS")
    server.admin.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(ServerUnavailable, match="is it a replica"):
            require_usable(read_redis_url(server.url()), PREFIX)
        server.admin.config_set("replica-serve-stale-data", "no")
        with pytest.raises(ServerUnavailable, match="takes no writes now"):
            require_usable(read_redis_url(server.url()), PREFIX)
    finally:
        server.admin.config_set("replica-serve-stale-data", "yes")
        server.admin.replicaof("NO", "ONE")
    assert refusal(server.url()) == ""


def test_tls_is_verified_unless_the_url_says_otherwise(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    files = authority.sign("localhost")  # not for 127.0.0.1
    options = ("--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key))
    ca = ("--tls-ca-cert-file", str(authority.file))
    with redis_server(
        tmp_path, *options, *ca, "--tls-auth-clients", "optional", plain=False
    ) as tls:
        by_name = tls.url(scheme="rediss").replace("127.0.0.1", "localhost")
        by_address = tls.url(scheme="rediss")
        trusted = f"?ssl_ca_certs={authority.file}"
        assert refusal(by_name + trusted) == ""
        assert refusal(f"{by_name}{trusted}&ssl_cert_reqs=CERT_REQUIRED") == ""
        assert refusal(f"{by_address}{trusted}&ssl_check_hostname=false") == ""
        assert "not trusted" in refusal(by_name)
        assert "?ssl_cert_reqs=none to trust any" in refusal(by_name)
        assert "mismatch" in refusal(by_address + trusted)
        for anything in ("none", "CERT_NONE"):
            assert refusal(f"{by_address}?ssl_cert_reqs={anything}") == ""
        assert "speaks TLS: write rediss://" in refusal(tls.url(f":{ENCODED}@"))
        assert "cannot be read" in refusal(f"{by_name}?ssl_ca_certs=/nowhere/ca.pem")
        assert "cannot be read" in refusal(f"{by_name}?ssl_ca_certs={files.key}")
        tls.admin.config_set("tls-auth-clients", "yes")
        assert "if it asks for a client's certificate" in refusal(by_name + trusted)
        client = authority.sign("client", title="client")
        own = f"&ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
        assert refusal(by_name + trusted + own) == ""
        foreign = Authority(tmp_path).sign("client", title="foreign")
        theirs = f"&ssl_certfile={foreign.certificate}&ssl_keyfile={foreign.key}"
        assert "ends our TLS" in refusal(by_name + trusted + theirs)
        assert "cannot be read" in refusal(f"{by_name}{trusted}&ssl_certfile=/nowhere.pem")
        mixed = f"&ssl_certfile={client.certificate}&ssl_keyfile={files.key}"
        assert "cannot be read" in refusal(by_name + trusted + mixed)


def test_tls_where_none_is_spoken(server: RedisServer) -> None:
    server.admin.config_set("timeout", "1")  # else the client's own 5 s pass
    assert "speaks no TLS: write redis://" in refusal(server.url(scheme="rediss"))
    server.admin.config_set("timeout", "0")


def test_a_cluster_and_a_sentinel_are_refused_by_name(tmp_path: Path) -> None:
    with redis_server(tmp_path) as master:
        watched = f"sentinel monitor m 127.0.0.1 {master.port} 1\n"
        (tmp_path / "sentinel.conf").write_text(watched)
        with redis_server(tmp_path, sentinel=tmp_path / "sentinel.conf") as sentinel:
            assert "is it a Sentinel" in refusal(sentinel.url())
    bus = str(quiet_port())  # by default 10,000 above, where programs connect from
    options = ("--cluster-enabled", "yes", "--cluster-port", bus)
    with redis_server(tmp_path, *options) as cluster:
        assert "is a cluster, which is not supported" in refusal(cluster.url())
        assert "is a cluster, which is not supported" in refusal(cluster.url(database=1))
        cluster.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        assert "is a cluster, which is not supported" in refusal(cluster.url())
