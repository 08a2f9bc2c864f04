"""`babylon serve`."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
def serve(host: str, port: int) -> None:
    """Answer agents with the newest good version, over OpenAI's API, until Ctrl-C.

    Example: VLLM_URLS=http://gpu1:8001 babylon serve --port 8000
    """
    command = [sys.executable, "-P", "-m", "workers.serve", "--host", host, "--port", str(port)]
    os.execv(command[0], command)  # noqa: S606
