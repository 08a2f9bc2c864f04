"""Runs the model server: `python -m workers.serve`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

_PACKAGES = ("starlette", "uvicorn", "torch", "transformers", "peft")


def main() -> None:
    """Run it, or refuse in one line where its packages are missing.

    Raises:
        SystemExit: It cannot start; stderr says what to do.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        sys.stderr.write(f"{missing[0]} is not installed: pip install 'babylon-tasks[train]'\n")
        raise SystemExit(2)
    # On a CPU that others use too, threads that spin while they wait cost three times as much.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from workers.serve.app import main as serve

        serve()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
