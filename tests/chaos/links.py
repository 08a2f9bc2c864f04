"""One role's connection to both servers, which can be cut for this role alone."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from tests.chaos.proxy import Proxy


@dataclass(frozen=True, slots=True)
class Links:
    """A proxy before Postgres and one before Redis."""

    postgres: Proxy
    redis: Proxy

    @classmethod
    def to(cls, postgres_port: int, redis_port: int) -> Links:
        """Make links to servers of this machine."""
        return cls(Proxy("127.0.0.1", postgres_port), Proxy("127.0.0.1", redis_port))

    def env(self, database_url: str, redis_url: str) -> dict[str, str]:
        """Return the servers' URLs, through the proxies."""
        return {
            "DATABASE_URL": _through(database_url, self.postgres),
            "REDIS_URL": _through(redis_url, self.redis),
        }

    def cut(self) -> None:
        """Make both black holes: the node is off the network."""
        self.postgres.cut()
        self.redis.cut()

    def drop(self) -> None:
        """Let both close and refuse connections."""
        self.postgres.drop()
        self.redis.drop()

    def restore(self) -> None:
        """Let both pass bytes again."""
        self.postgres.restore()
        self.redis.restore()

    def close(self) -> None:
        """End both."""
        self.postgres.close()
        self.redis.close()


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
