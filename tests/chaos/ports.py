"""Ports that no other process gets while nobody listens on them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 15_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def quiet_port() -> int:
    """Find a free port of loopback that the kernel gives to no outgoing connection.

    A server that is down for a second would otherwise find its port taken by a client, or a client
    that keeps trying would in the end be connected to itself.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        port = random.randrange(_LOWEST, highest)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
