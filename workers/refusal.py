"""How a role refuses a start that cannot work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from babylon_tasks.errors import Retryable, UserError


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
        raise SystemExit(75 if isinstance(error, Retryable) else 2) from None
