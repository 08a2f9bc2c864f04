"""Runs the endpoint: `python -m workers.serve`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from babylon_tasks.errors import UserError


def main() -> None:
    """Run it, or refuse in one line.

    Raises:
        SystemExit: It cannot start; stderr says what to do.
    """
    if find_spec("uvicorn") is None:
        sys.stderr.write("uvicorn is not installed: pip install 'babylon-tasks[serve]'\n")
        raise SystemExit(2)
    # On a CPU that others use too, threads that spin while they wait cost three times as much.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from workers.serve.service import run

        run()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
