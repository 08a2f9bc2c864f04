"""What SIGTERM does to a process of ours."""

from __future__ import annotations


def interrupt(*_: object) -> None:
    """Handle a signal as Ctrl-C: stop what was started, and end."""
    raise KeyboardInterrupt


def stop(*_: object) -> None:
    """Handle a signal in what runs until it is told to end: drop the work, give back, exit 0."""
    raise SystemExit(0)
