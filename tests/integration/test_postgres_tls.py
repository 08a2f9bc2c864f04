"""TLS to Postgres with real certificates: psycopg and asyncpg verify alike, or refuse alike.

PgBouncer speaks it here, since the embedded Postgres is built without.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict

from babylon_tasks import pipeline
from babylon_tasks.cockpit import checks
from babylon_tasks.errors import ServerRefused, UserError
from babylon_tasks.store.asyncpg_arguments import arguments, tls_context
from babylon_tasks.store.database import Database
from babylon_tasks.store.traces import open_reader
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from tests.pgbouncer import pgbouncer
from tests.rows import add_window, hours_ago, one

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, and its file."""

    key: Key
    certificate: x509.Certificate
    file: Path


def make_authority(folder: Path, name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = certificate(subject, subject, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    made = builder.sign(key, hashes.SHA256())
    return Authority(key, made, written(folder / f"{name}.crt", made))


def certificate(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def issue(by: Authority, folder: Path, name: str, *others: x509.GeneralName) -> tuple[Path, Path]:
    """Files of a certificate for these names, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName(name), *others])
    made = certificate(subject, by.certificate.subject, key).add_extension(names, critical=False)
    file = written(folder / f"{name}.crt", made.sign(by.key, hashes.SHA256()))
    secret = folder / f"{name}.key"
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    secret.chmod(0o600)
    return file, secret


def written(file: Path, made: x509.Certificate) -> Path:
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return file


@dataclass(frozen=True)
class Encrypted:
    """A server that speaks TLS only, by its port; and what its clients may name."""

    port: str
    authority: Path
    stranger: Path
    client: tuple[Path, Path]

    def url(self, host: str, query: str) -> str:
        filled = query.format(ca=self.authority, stranger=self.stranger, crt=self.client[0],
                              key=self.client[1])  # fmt: skip
        return f"postgresql://anybody@{host}:{self.port}/postgres?{filled}"


@pytest.fixture(scope="module")
def encrypted(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    ours, stranger = make_authority(folder, "ours"), make_authority(folder, "stranger")
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    file, key = issue(ours, folder, "localhost", loopback)
    tls = {
        "client_tls_key_file": str(folder / "pooler" / "key"),
        "client_tls_cert_file": str(file),
        "client_tls_ca_file": str(ours.file),
        "client_tls_sslmode": "require",
        "listen_addr": "127.0.0.1,127.0.0.2",  # the second is not in the certificate
    }
    (folder / "pooler").mkdir()
    (folder / "pooler" / "key").write_bytes(key.read_bytes())
    (folder / "pooler" / "key").chmod(0o644)  # read by the user who runs PgBouncer
    for each in (folder, *folder.parents):
        if each.stat().st_uid == folder.stat().st_uid and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    with pgbouncer(postgres_url, folder / "pooler", "transaction", **tls) as url:
        port = url.rpartition(":")[2].partition("/")[0]
        yield Encrypted(port, ours.file, stranger.file, issue(ours, folder, "client"))


WORKS = [
    ("127.0.0.1", "sslmode=require", "TLS, not verified"),
    ("127.0.0.1", "", "TLS, not verified"),
    ("127.0.0.1", "sslmode=prefer", "TLS, not verified"),
    ("127.0.0.1", "sslmode=allow", "TLS, not verified"),
    ("127.0.0.1", "sslmode=require&sslcert=/nowhere&sslkey={key}", "TLS, not verified"),
    ("localhost", "sslrootcert={ca}", "TLS, verified"),
    ("localhost", "sslmode=verify-full&sslrootcert={ca}", "TLS, verified"),
    ("127.0.0.1", "sslmode=verify-full&sslrootcert={ca}", "TLS, verified"),
    ("localhost", "sslmode=verify-ca&sslrootcert={ca}", "TLS, verified"),
    ("127.0.0.2", "sslmode=verify-ca&sslrootcert={ca}", "TLS, verified"),
    ("localhost", "hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca}", "TLS, verified"),
    ("localhost", "sslmode=verify-full&sslrootcert={ca}&sslcert={crt}&sslkey={key}",
     "TLS, verified"),
    ("localhost", "sslmode=verify-full&sslrootcert={ca}&ssl_min_protocol_version=TLSv1.3",
     "TLS, verified"),
]  # fmt: skip
REFUSED = [
    ("localhost", "sslrootcert={stranger}", "cannot be verified: name the file .* sslrootcert="),
    ("localhost", "sslmode=verify-ca&sslrootcert={stranger}", "cannot be verified"),
    ("localhost", "sslmode=require&sslrootcert={stranger}", "cannot be verified"),
    ("localhost", "sslmode=verify-full&sslrootcert=system", "cannot be verified"),
    ("localhost", "sslmode=verify-full", "sslrootcert, sslcert and sslkey must name files"),
    ("localhost", "sslrootcert=/nowhere/ca.pem", "sslrootcert, sslcert and sslkey must name files"),
    ("127.0.0.2", "sslmode=verify-full&sslrootcert={ca}", "for another host: use the host name"),
    ("localhost", "sslmode=disable", "the server wants TLS: write sslmode=require"),
]


@pytest.mark.parametrize(("host", "query", "says"), WORKS)
def test_both_drivers_work(encrypted: Encrypted, host: str, query: str, says: str,
                           make_context: Callable[..., Context]) -> None:  # fmt: skip
    context = make_context(database_url=encrypted.url(host, query))

    async def both() -> None:
        async with open_reader(context.database, context.settings) as reader:
            told = reader._connection._transport.get_extra_info("ssl_object")
            assert told is not None
            assert (told.context.verify_mode.name == "CERT_REQUIRED") is ("not" not in says)

    aio.run(both())
    assert context.database.connected().pgconn.ssl_in_use
    assert says in checks.postgres(context.settings)


@pytest.mark.parametrize(("host", "query", "says"), REFUSED)
def test_both_drivers_refuse(
    encrypted: Encrypted, host: str, query: str, says: str, make_context: Callable[..., Context]
) -> None:
    """psycopg says it first; asyncpg is given what psycopg would have used."""
    context = make_context(database_url=encrypted.url(host, query))
    with pytest.raises(UserError, match=says) as caught:
        checks.postgres(context.settings)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ServerRefused)


@pytest.mark.parametrize(
    ("query", "says"),
    [("sslrootcert={stranger}&sslmode=verify-ca", "certificate cannot be verified"),
     ("sslrootcert={ca}&sslmode=verify-full", "for another host"),
     ("sslmode=require&channel_binding=require", "certificate cannot be verified")],
)  # fmt: skip
def test_asyncpg_by_itself_verifies_as_much(
    encrypted: Encrypted, query: str, says: str, make_context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As if a stranger were in between for the second connection alone."""
    context = make_context(database_url=encrypted.url("127.0.0.2", query))
    honest = make_context(database_url=encrypted.url("127.0.0.2", "sslmode=require"))
    told = arguments(honest.database.connected())
    parameters = conninfo_to_dict(context.settings.postgres())
    told["ssl"] = tls_context(parameters)  # type: ignore[arg-type]
    monkeypatch.setattr("babylon_tasks.store.traces.arguments", lambda _: told)

    async def read() -> None:
        async with open_reader(honest.database, honest.settings):
            pass

    with pytest.raises(UserError, match=says) as caught:
        aio.run(read())
    assert isinstance(caught.value, ServerRefused)


def test_the_authorities_of_this_machine_count(
    encrypted: Encrypted, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's wheel looks for them in a folder that no machine has."""
    monkeypatch.setenv("SSL_CERT_FILE", str(encrypted.authority))
    url = encrypted.url("localhost", "sslmode=verify-full&sslrootcert=system")
    assert "TLS, verified" in checks.postgres(make_context(database_url=url).settings)


def test_a_server_without_tls_is_named(
    postgres_url: str, tmp_path: Path, make_context: Callable[..., Context]
) -> None:
    with pgbouncer(postgres_url, tmp_path, "transaction") as url:
        context = make_context(database_url=f"{url}?sslmode=require")
        with pytest.raises(UserError, match="the server has no TLS, and sslmode asks for it"):
            checks.postgres(context.settings)
        plain = make_context(database_url=url)
        assert "no TLS" in checks.postgres(plain.settings)


def test_a_certificate_that_no_longer_fits_costs_no_attempt(
    context: Context, encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    wrong = Database(encrypted.url("127.0.0.2", "sslmode=verify-full&sslrootcert={ca}"))
    monkeypatch.setattr(
        "babylon_tasks.scoring.run.open_reader", lambda _, settings: open_reader(wrong, settings)
    )
    with pytest.raises(UserError, match="for another host"):
        pipeline.score(context)
    row = one(context, "SELECT state, attempts FROM rl.windows")
    assert row == {"state": "due", "attempts": 0}
