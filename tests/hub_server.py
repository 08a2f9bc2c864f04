"""A server that speaks as much of the Hugging Face Hub's protocol as loading a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class HubServer:
    """Repositories by id and revision; `requests` are the paths that were asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._folders: dict[tuple[str, str], Path] = {}
        self._main: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def push(self, repo_id: str, folder: Path) -> str:
        """Make the folder the newest commit of the branch `main`; return the commit's hash."""
        commit = hashlib.sha1(str(folder).encode()).hexdigest()
        self._folders[repo_id, commit] = folder
        self._main[repo_id] = commit
        return commit

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _find(self, repo_id: str, revision: str) -> tuple[str, Path] | None:
        commit = self._main.get(repo_id, "") if revision == "main" else revision
        folder = self._folders.get((repo_id, commit))
        return (commit, folder) if folder else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.requests.append(self.path)
                parts = self.path.partition("?")[0].strip("/").split("/")
                if "tree" in parts:  # a folder of further chat templates
                    self._answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
                    return
                if parts[0] == "api":
                    self._answer(json.dumps({"id": "/".join(parts[2:4]), "tags": []}).encode(), {})
                    return
                owner, name, _, revision, *path = parts
                found = hub._find(f"{owner}/{name}", revision)
                file = found[1].joinpath(*path) if found else None
                if found is None or file is None or not file.is_file():
                    code = "EntryNotFound" if found else "RevisionNotFound"
                    self._answer(b"", {"X-Error-Code": code}, 404)
                    return
                body = file.read_bytes()
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                self._answer(body, {"ETag": etag, "X-Repo-Commit": found[0]})

            def _answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
                self.send_response(status)
                for header, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(header, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
