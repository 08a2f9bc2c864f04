"""Handlers of SIGTERM for our processes."""

from __future__ import annotations


def interrupt(*_: object) -> None:
    """Handle a signal like Ctrl-C: stop what was started, then end."""
    raise KeyboardInterrupt


def stop(*_: object) -> None:
    """Handle a signal in a long-running process: drop the work, give leases back, exit with 0."""
    raise SystemExit(0)
