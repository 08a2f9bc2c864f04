"""A local server that speaks as much of W&B's API as its client needs to log and resume a run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Runs:
    """History lines by run id, as the client sent them; `keys` are the API keys that came."""

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.keys: set[str] = set()
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        if path == "/graphql":
            return {"data": self._graphql(body.get("operationName"), body.get("variables", {}))}
        if path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history.setdefault(path.split("/")[-2], []).extend(map(json.loads, lines))
        return {}

    def _graphql(self, operation: str | None, variables: dict[str, Any]) -> dict[str, Any]:
        project = {
            "id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "us"}
        }  # fmt: skip
        name = variables.get("name", "")
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": self._resumable(name)}}
        if operation == "UpsertBucket":
            new = name not in self.history
            lines = len(self.history.setdefault(name, []))
            bucket = {
                "id": name, "name": name, "displayName": name, "config": "{}",
                "historyLineCount": lines, "project": project,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if operation == "CreateRunFiles":
            files = [
                {"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]
            ]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        return {}

    def _resumable(self, name: str) -> dict[str, Any] | None:
        if name not in self.history:
            return None
        tail = [json.dumps(line) for line in self.history[name][-1:]]
        return {
            "id": name, "name": name, "displayName": name, "tags": [],
            "config": json.dumps({"_wandb": {"value": {"t": {}}}}),
            "summaryMetrics": tail[0] if tail else "{}", "logLineCount": 0, "eventsLineCount": 0,
            "historyLineCount": len(self.history[name]), "historyTail": json.dumps(tail),
            "eventsTail": json.dumps([json.dumps({"_runtime": 1})]),
            "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip


@contextmanager
def serving() -> Iterator[Runs]:
    """The server on loopback, until the block ends."""
    runs = Runs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            if self.headers.get("Content-Type", "").startswith("application/json"):
                runs.keys.add(self.headers.get("Authorization", ""))
                self._send(runs.answer(self.path, json.loads(data)))
            else:
                self._send({})  # files and telemetry

        do_PUT = do_POST

        def do_GET(self) -> None:
            self._send({})

        def _send(self, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    runs.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield runs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
