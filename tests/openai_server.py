"""A server that speaks OpenAI's API on loopback, and answers as a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


class Stub:
    """What the server answers (`reply`, `headers`), and what it was asked (`bodies`)."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: (200, completion("x"))
        self.headers: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.paths: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.headers: dict[str, str] = {}  # of every answer
        self.url = ""


def completion(text: str | None, **more: Any) -> dict[str, Any]:
    """An answer in OpenAI's shape."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    choice |= {name: more.pop(name) for name in ("logprobs", "finish_reason") if name in more}
    return {"choices": [choice], **more}


@contextlib.contextmanager
def serving() -> Iterator[Stub]:
    """Run the server on a free port."""
    made = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with made.lock:
                made.bodies.append(body)
                made.keys.add(self.headers["authorization"])
                made.paths.add(self.path)
                made.at_once += 1
                made.most_at_once = max(made.most_at_once, made.at_once)
            status, said = made.reply(body)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            with made.lock:
                made.at_once -= 1
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()
