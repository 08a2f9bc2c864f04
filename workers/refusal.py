"""How a role refuses a start that cannot work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from babylon_tasks.errors import Retryable, ServerRefused, ServerUnavailable, UserError
from babylon_tasks.settings import Settings
from babylon_tasks.store.broker import require_usable
from babylon_tasks.store.identity import key_prefix

log = logging.getLogger(__name__)


@contextmanager
def refusing_in_one_line() -> Iterator[None]:
    """End a start that cannot work with one line, and exit code 2, or 75 to be started again.

    A supervisor must restart a worker that was up before its database (75), and must not restart
    one that waits for a person (2).
    """
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        comes_back = isinstance(error, Retryable) and not isinstance(error, ServerRefused)
        raise SystemExit(75 if comes_back else 2) from None


def require_broker(settings: Settings) -> None:
    """Refuse a Redis that can never work; one that is away, or takes no writes now, is waited for.

    Raises:
        UserError: A person must change something, such as the password or a right of the user.
        ServerUnavailable: Postgres does not answer, which says what our keys begin with.
    """
    prefix = key_prefix(settings.postgres())
    try:
        require_usable(settings.redis(), prefix)
    except ServerUnavailable as error:
        log.warning("%s It is tried again and again.", error)
