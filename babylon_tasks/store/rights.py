"""Whether the role of DATABASE_URL may do what the roles of this project do."""

from __future__ import annotations

from typing import Any

import psycopg

from babylon_tasks.errors import UserError
from babylon_tasks.store.app_tables import TABLES
from babylon_tasks.store.queries import load

_SQL = load("rights")

_MOST_NAMED = 6
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_ON_APP = {
    "public.trajectories": ("SELECT", "UPDATE"),
    "public.market_outcomes": ("SELECT",),
    "public.training_batches": ("SELECT", "INSERT", "UPDATE"),
    "public.trained_models": ("SELECT", "INSERT", "UPDATE"),
    "public.reward_judgments": _ALL,
}


def require_schemas(connection: psycopg.Connection[Any]) -> None:
    """Check that this role may look into the schemas that exist.

    Raises:
        UserError: It may not.
    """
    _refuse(connection, _texts(connection, "missing_on_schemas"))


def require_to_migrate(connection: psycopg.Connection[Any]) -> None:
    """Check the rights that `babylon migrate` needs on this database, as far as it is migrated.

    Raises:
        UserError: Some are missing; the message names them.
    """
    tables = [f'public."{table}"' for table in TABLES]
    _refuse(connection, _texts(connection, "missing_to_migrate", {"tables": tables}))


def require_writable(connection: psycopg.Connection[Any]) -> None:
    """Check that transactions here may write.

    Raises:
        UserError: They may not.
    """
    row = connection.execute("SHOW transaction_read_only").fetchone()
    if row == ("on",):
        raise UserError(
            "the server is read-only (a standby, or default_transaction_read_only): is "
            "DATABASE_URL that of the primary?"
        )


def require_to_work(connection: psycopg.Connection[Any]) -> None:
    """Check the rights that the roles need together, on a migrated database.

    Raises:
        UserError: Some are missing, or row-level security hides the traces.
    """
    wanted = [(table, right) for table, rights in _ON_APP.items() for right in rights]
    for name, is_sequence in connection.execute(_SQL["relations_of_rl"]).fetchall():
        rights = ("USAGE",) if is_sequence else ("SELECT",) if name == "rl.migrations" else _ALL
        wanted += [(name, right) for right in rights]
    tables, names = [table for table, _ in wanted], [right for _, right in wanted]
    _refuse(
        connection,
        _texts(connection, "missing_rights", {"tables": tables, "rights": names})
        + _texts(connection, "functions_of_rl"),
    )
    hidden = _texts(connection, "hides_rows", {"tables": [*_ON_APP]})
    if hidden:
        raise UserError(
            f"row-level security hides rows of {_listed(hidden)} from the role "
            f"{connection.info.user}: use their owner's role, or one with BYPASSRLS"
        )


def _texts(
    connection: psycopg.Connection[Any], query: str, parameters: dict[str, Any] | None = None
) -> list[str]:
    return [text for (text,) in connection.execute(_SQL[query], parameters).fetchall()]


def _refuse(connection: psycopg.Connection[Any], missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"the role {connection.info.user} lacks {_listed(missing)}: GRANT it as the owner of "
            "the tables, or use the owner's role"
        )


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
