"""Debian's nginx, as a reverse proxy before Flower."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from babylon_tasks.child import end_with_parent
from tests.chaos.ports import quiet_port
from tests.missing import missing

# As docs/deploying.md has it: `$http_host` keeps the port, which `$host` would lose.
_PROXY = """\
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location {prefix} {{
      proxy_pass http://127.0.0.1:{behind};
      proxy_set_header Host $http_host;
      proxy_set_header X-Real-Ip $remote_addr;
      proxy_set_header X-Scheme $scheme;
    }}
  }}
}}
"""


@contextmanager
def reverse_proxy(folder: Path, behind: int, prefix: str) -> Iterator[str]:
    """Pass what begins with `prefix` to a port; without nginx a test skips, and fails in CI."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        missing("no nginx: apt-get install nginx-light (.ci/run does so)")
    port, config = quiet_port(), folder / "nginx.conf"
    config.write_text(_PROXY.format(folder=folder, port=port, behind=behind, prefix=prefix))
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")],
        preexec_fn=end_with_parent,
    )
    try:
        _wait(port, folder / "nginx.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                pytest.fail(log.read_text()[-2000:])
            time.sleep(0.02)
        else:
            return
