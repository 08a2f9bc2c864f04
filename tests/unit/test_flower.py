"""What Flower shows."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("name", "args", "shown"),
    [
        ("babylon.score", "(['2025-01-15T10:00', '2025-01-15T11:00'],)",
         ("score", "2025-01-15T10:00, 2025-01-15T11:00")),
        ("babylon.train", "('babylon-agent',)", ("train", "babylon-agent")),
        ("babylon.sweep", "()", ("sweep", "")),
        (None, None, ("", "")),
    ],
)  # fmt: skip
def test_names_and_windows_are_readable(
    name: str | None, args: str | None, shown: tuple[str, str]
) -> None:
    import flower.options  # noqa: F401 - declares what the configuration reads

    from workers.watch.flowerconfig import format_task

    task = format_task(SimpleNamespace(name=name, args=args))
    assert (task.name, task.args) == shown


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ("", "127.0.0.1"),
        ("options.basic_auth = ['user:password']", "not set"),
        ("options.address = 'localhost'", "not set"),
    ],
)
def test_it_is_open_on_loopback_only(changes: str, address: str) -> None:
    code = f"""
import flower.options
from tornado.options import options
{changes}
import workers.watch.flowerconfig as config
print(getattr(config, "address", "not set"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == address
