"""Settings: Postgres and Redis."""

from __future__ import annotations

from pydantic import Field, SecretStr

from babylon_tasks.errors import UserError
from babylon_tasks.settings import postgres_url
from babylon_tasks.settings.group import Group
from babylon_tasks.settings.redis_url import RedisUrl, read_redis_url


class Servers(Group):
    """Servers.

    libpq reads `DATABASE_URL` for all roles; what cannot be supported is refused at the start in
    one line ([deploying.md](deploying.md#the-database)). `babylon demo` and `babylon up` start
    servers of their own if neither variable is set.
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
        """Return DATABASE_URL in its normal form, as `postgres_url.read` has it.

        Raises:
            UserError: DATABASE_URL is missing, or no URL that both drivers can use.
        """
        if self.database_url is None:
            raise UserError(
                "DATABASE_URL is not set: export DATABASE_URL=postgresql://user:password@host/db "
                "(or run `babylon demo`, which brings its own database)"
            )
        return postgres_url.read(self.database_url.get_secret_value())

    def redis(self) -> RedisUrl:
        """Return where the broker is, as every client is to read it.

        Raises:
            UserError: REDIS_URL is missing, or cannot be used.
        """
        if self.redis_url is None:
            raise UserError("REDIS_URL is not set: export REDIS_URL=redis://:password@host:6379/0")
        return read_redis_url(self.redis_url.get_secret_value())
