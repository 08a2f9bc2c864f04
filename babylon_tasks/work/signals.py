"""What SIGTERM does to a process of ours."""

from __future__ import annotations


def interrupt(*_: object) -> None:
    """A signal handler: end as Ctrl-C does, stopping what was started."""
    raise KeyboardInterrupt


def stop(*_: object) -> None:
    """A signal handler for what runs until it is told to end: drop the work, give back, exit 0."""
    raise SystemExit(0)
