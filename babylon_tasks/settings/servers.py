"""Settings: Postgres and Redis."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import Field, SecretStr

from babylon_tasks.errors import UserError
from babylon_tasks.settings.group import Group
from babylon_tasks.settings.redis_url import RedisUrl, read_redis_url

# Parameters that Prisma puts into a database URL and libpq refuses.
_PRISMA_PARAMETERS = frozenset(
    {
        "schema",
        "pgbouncer",
        "connection_limit",
        "pool_timeout",
        "socket_timeout",
        "statement_cache_size",
        "max_connection_lifetime",
        "max_idle_connection_lifetime",
        "single_use_connections",
        "sslaccept",
        "sslidentity",
    }
)


class Servers(Group):
    """Servers.

    Parameters that only Prisma knows (`schema`, `pgbouncer`, `connection_limit` …) are dropped from
    `DATABASE_URL`. `babylon demo` and `babylon up` start servers of their own if neither
    variable is set.
    """

    database_url: SecretStr | None = Field(
        None,
        description="Babylon's Postgres: `postgresql://user:password@host:5432/database`. Write "
        "special characters of the password percent-encoded (`@` is `%40`, `$` is `%24`). From "
        "Docker Compose, a database on the same machine is at `host.docker.internal`, and that of "
        "`--profile standalone` is "
        "`postgresql://babylon:${POSTGRES_PASSWORD}@postgres:5432/babylon`.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis, the Celery broker: `redis://:password@host:6379/0`, `rediss://` with "
        "TLS. Other forms are refused, and the line says what to write. Docker Compose sets it "
        "itself.",
    )

    def postgres(self) -> str:
        """Return the database URL without the parameters that only Prisma knows.

        Raises:
            UserError: DATABASE_URL is missing or no URL.
        """
        if self.database_url is None:
            raise UserError(
                "DATABASE_URL is not set: export DATABASE_URL=postgresql://user:password@host/db "
                "(or run `babylon demo`, which brings its own database)"
            )
        try:
            parts = urlsplit(self.database_url.get_secret_value().strip())
            _ = parts.port
        except ValueError:
            raise UserError(
                "DATABASE_URL is not a Postgres URL; it must look like "
                "postgresql://user:password@host:5432/database"
            ) from None
        query = [p for p in parse_qsl(parts.query) if p[0] not in _PRISMA_PARAMETERS]
        # Not urlunsplit: it drops the slashes of a URL without a host (a unix socket).
        rebuilt = f"{parts.scheme}://{parts.netloc}{parts.path}"
        return f"{rebuilt}?{urlencode(query, quote_via=quote)}" if query else rebuilt

    def redis(self) -> RedisUrl:
        """Return where the broker is, as every client is to read it.

        Raises:
            UserError: REDIS_URL is missing, or cannot be used.
        """
        if self.redis_url is None:
            raise UserError("REDIS_URL is not set: export REDIS_URL=redis://:password@host:6379/0")
        return read_redis_url(self.redis_url.get_secret_value())
