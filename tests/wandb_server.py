"""W&B's training API over HTTP, as ART's client speaks to it: right, or wrong as told.

Models, their checkpoints, training jobs with their events, and chat completions for what was
trained. A POST of a job does what `server.script` says first, then `server.default`.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from babylon_tasks.training.wandb_jobs import OFFERED

KEY = "wandb-test-key-0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Behaviour:
    """What happens to the POST of one job: whether it becomes one, and what is answered."""

    name: str
    made: bool = True
    status: int = 200
    fault: str = ""  # hang, reset or not_json, after the job was made or not
    message: str = "The server had an error."


good = Behaviour("good")
error_before = Behaviour("error_before", made=False, status=500)
error_after = Behaviour("error_after", status=500)
reset_before = Behaviour("reset_before", made=False, fault="reset")
reset_after = Behaviour("reset_after", fault="reset")
hang_after = Behaviour("hang_after", fault="hang")
not_json = Behaviour("not_json", fault="not_json")


def refused(status: int, message: str = "No.") -> Behaviour:
    """Refused with a reason."""
    return Behaviour(f"refused_{status}", made=False, status=status, message=message)


@dataclass
class Job:
    """A job as it was posted."""

    id: str
    model_id: str
    body: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def trajectories(self) -> list[dict[str, Any]]:
        return [t for group in self.body["trajectory_groups"] for t in group["trajectories"]]


@dataclass
class WandbServer:
    """The server, in threads of this process, from `with` to its end.

    `running` holds jobs back: they start, and end only when it is set.
    """

    entity: str = "team"
    script: list[Behaviour] = field(default_factory=list)
    default: Behaviour = good
    gradient_steps: int = 3
    fail_with: list[str] = field(default_factory=list)  # the next jobs' error messages
    away: dict[str, int] = field(default_factory=dict)  # "METHOD /path" part: status
    page: int = 2  # events on one page
    moves: bool = True  # a job that ended makes a checkpoint
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id
    steps: dict[str, list[int]] = field(default_factory=dict)  # by model id
    jobs: list[Job] = field(default_factory=list)
    posts: int = 0  # of jobs, whatever became of them
    asked: list[dict[str, Any]] = field(default_factory=list)  # of the chat
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()
        self.closing = threading.Event()
        self.lock = threading.RLock()
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.wandb = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    @property
    def url(self) -> str:
        """What clients call `base_url`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def newest_step(self) -> int:
        """Of the only model."""
        (steps,) = self.steps.values()
        return max(steps, default=0)

    def create_model(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            for model in self.models.values():
                if (model["project"], model["name"]) == (body["project"], body["name"]):
                    if not body.get("return_existing"):
                        return 409, _error("the model exists")
                    return 200, model
            id_ = f"model-{len(self.models) + 1}"
            self.models[id_] = {
                "id": id_,
                "entity": body["entity"] or self.entity,
                "project": body["project"],
                "name": body["name"],
                "base_model": body["base_model"],
                "run_id": "run-1",
            }
            self.steps[id_] = []
            return 200, self.models[id_]

    def take_job(self, body: dict[str, Any]) -> tuple[Behaviour, dict[str, Any]]:
        with self.lock:
            self.posts += 1
            behaviour = self.script.pop(0) if self.script else self.default
            if body["model_id"] not in self.models:
                return refused(404, "no such model"), {}
            if not behaviour.made:
                return behaviour, {}
            why_not = _why_not(body)
            if why_not:
                return refused(422, why_not), {}
            job = Job(f"job-{len(self.jobs) + 1}", body["model_id"], body)
            self.jobs.append(job)
            self._tell(job, "training_started", num_sequences=self.gradient_steps)
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
            return behaviour, {"id": job.id}

    def _run(self, job: Job) -> None:
        """Train: some gradient steps, and a checkpoint."""
        while not self.may_end.wait(0.05):
            if self.closing.is_set():
                return
        with self.lock:
            if self.fail_with:
                self._tell(job, "training_failed", error_message=self.fail_with.pop(0))
                return
            for step in range(self.gradient_steps):
                self._tell(job, "gradient_step", loss=0.5 / (step + 1), grad_norm=1.0, note="x")
            if self.moves:
                steps = self.steps[job.model_id]
                steps.append(max(steps, default=0) + 1)
            self._tell(job, "training_ended")
            job.ended = True

    def _tell(self, job: Job, type_: str, **data: Any) -> None:
        job.events.append({"id": f"{job.id}-{len(job.events) + 1}", "type": type_, "data": data})

    def events_of(self, job_id: str, after: str | None) -> dict[str, Any] | None:
        """A page, as a cursor gives it."""
        with self.lock:
            job = next((job for job in self.jobs if job.id == job_id), None)
            if job is None:
                return None
            ids = [event["id"] for event in job.events]
            start = ids.index(after) + 1 if after else 0
            page = job.events[start : start + self.page]
            return {"data": page, "has_more": start + self.page < len(job.events)}

    def checkpoints_of(self, model_id: str, order: str, limit: int) -> dict[str, Any]:
        with self.lock:
            steps = sorted(self.steps.get(model_id, ()), reverse=order == "desc")
        data = [{"id": f"c-{step}", "step": step, "metrics": {}} for step in steps[:limit]]
        return {"data": data, "has_more": len(steps) > limit}

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What a trained version or a base model says; with tokens as vLLM tells them."""
        with self.lock:
            self.asked.append(body)
            known = {
                f"wandb-artifact:///{m['entity']}/{m['project']}/{m['name']}:step{step}"
                for id_, m in self.models.items()
                for step in self.steps[id_]
            }
        if body["model"] not in known | set(OFFERED):
            return 404, _error(f"no such model: {body['model']}")
        words = ["Wait", " for", " a", " dip", "."]
        message = {"role": "assistant", "content": "".join(words)}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("return_token_ids"):
            choice["token_ids"] = [101, 102, 103, 104, 105]
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": w, "logprob": -0.5} for w in words]}
        return 200, {"choices": [choice]}

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Any:
        """Keeps the connection, so that the end of the server ends it too."""
        with self.lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self.lock:
                self._connections.discard(connection)


def _why_not(body: dict[str, Any]) -> str | None:
    """What W&B would not train: assistant turns without log-probabilities."""
    for group in body["trajectory_groups"]:
        for trajectory in group["trajectories"]:
            histories = [trajectory, *trajectory["additional_histories"]]
            for history in histories:
                choices = [m for m in history["messages_and_choices"] if "finish_reason" in m]
                tokens = [t for c in choices for t in (c["logprobs"] or {}).get("content") or ()]
                if not tokens:
                    return "logprobs are missing"
                if not all(re.fullmatch(r"token_id:\d+", t["token"]) for t in tokens):
                    return "tokens must be token_id:N"
    return None


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


class _Server(ThreadingHTTPServer):
    wandb: WandbServer
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with self.server.wandb.connected(self.connection), contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        wandb, url = self.server.wandb, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self._refused(url.path):
            return
        if found := re.fullmatch(r"/v1/preview/models/([^/]+)/checkpoints", url.path):
            limit = int(query.get("limit", 20))
            self._send(200, wandb.checkpoints_of(found[1], query.get("order", "asc"), limit))
        elif found := re.fullmatch(r"/v1/preview/training-jobs/([^/]+)/events", url.path):
            page = wandb.events_of(found[1], query.get("after"))
            self._send(200, page) if page else self._send(404, _error("no such job"))
        else:
            self._send(404, _error("no such path"))

    def do_POST(self) -> None:
        wandb, path = self.server.wandb, urlsplit(self.path).path
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused(path):
            return
        if path == "/v1/preview/models":
            self._send(*wandb.create_model(body))
        elif path == "/v1/preview/training-jobs":
            self._answer_job(*wandb.take_job(body))
        elif path == "/v1/chat/completions":
            self._send(*wandb.answer(body))
        else:
            self._send(404, _error("no such path"))

    def _refused(self, path: str) -> bool:
        wandb = self.server.wandb
        wandb.paths.append(f"{self.command} {path}")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, _error("invalid api key"))
            return True
        for part, status in wandb.away.items():
            if part in f"{self.command} {path}":
                self._send(status, _error("told to"))
                return True
        return False

    def _answer_job(self, behaviour: Behaviour, answer: dict[str, Any]) -> None:
        if behaviour.fault == "hang":
            while not self.server.wandb.closing.is_set():
                if select.select([self.connection], [], [], 0.05)[0]:
                    break  # the client hung up
            self.close_connection = True
        elif behaviour.fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif behaviour.fault == "not_json":
            self._send_bytes(200, b"<html>", "text/html")
        elif behaviour.status != 200:
            self._send(behaviour.status, _error(behaviour.message))
        else:
            self._send(200, answer)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(answer).encode(), "application/json")

    def _send_bytes(self, status: int, body: bytes, type_: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def wait_until(condition: Any, seconds: float = 40.0) -> None:
    """Until it holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
