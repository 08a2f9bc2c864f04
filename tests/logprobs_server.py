"""The part of vLLM's HTTP API that log-probabilities are asked by, with a real, tiny model.

Recorded from vLLM 0.32.0: `POST /tokenize` (messages, or a text) and `POST /v1/completions` with
token ids and `prompt_logprobs: 0`. The numbers are the model's own, by transformers. What goes
wrong is decided by faults, one a completion: `server.script` first, then `server.default`.
"""

from __future__ import annotations

import copy
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

Entries = list[dict[str, dict[str, Any]] | None]  # as vLLM's prompt_logprobs
Fault = Callable[[Entries], Any]  # what is answered instead: entries, or (status, body)


def good(entries: Entries) -> Entries:
    return entries


def server_error(entries: Entries) -> tuple[int, bytes]:
    return 500, b'{"error":{"message":"CUDA error","type":"InternalServerError","code":500}}'


def refused(entries: Entries) -> tuple[int, bytes]:
    text = "This model's maximum context length is 2048 tokens."
    return 400, json.dumps({"error": {"message": text, "code": 400}}).encode()


def unauthorized(entries: Entries) -> tuple[int, bytes]:
    return 401, b'{"error":"Unauthorized"}'


def not_json(entries: Entries) -> tuple[int, bytes]:
    return 200, b"<!doctype html><html><body><h1>Sign in</h1></body></html>"


def no_choices(entries: Entries) -> tuple[int, bytes]:
    return 200, b'{"choices":[]}'


def no_logprobs(entries: Entries) -> tuple[int, bytes]:
    return 200, b'{"choices":[{"index":0,"text":"x","prompt_logprobs":null}]}'


def too_short(entries: Entries) -> Entries:
    return entries[:-1]


def too_long(entries: Entries) -> Entries:
    return [*entries, entries[-1]]


def a_null_more(entries: Entries) -> Entries:
    return [*entries[:-1], None]


def other_ids(entries: Entries) -> Entries:
    return [e and {str(int(key) + 1): value for key, value in e.items()} for e in entries]


def beyond_numbers(entries: Entries) -> Entries:
    return [e and {key: {**value, "logprob": -1e300} for key, value in e.items()} for e in entries]


def positive(entries: Entries) -> Entries:
    return [e and {key: {**value, "logprob": 0.25} for key, value in e.items()} for e in entries]


def hang(entries: Entries) -> None:
    return None


class LogprobsServer:
    """Runs in threads of this process while its `with` block lasts.

    `models` maps the names it knows to an adapter's folder, or None for the base model; `key`, if
    any, must be given.
    """

    def __init__(self, base_model: str | Path, key: str | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base_model)
        self.base_model = base_model
        self.models: dict[str, str | None] = {}
        self.key = key
        self.script: deque[Fault] = deque()
        self.default: Fault = good
        self.delay_seconds = 0.0
        self.asked: list[tuple[str, str]] = []  # (model, text) of each completion
        self.tokenized = 0
        self.closing = threading.Event()
        self._networks: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def then(self, *faults: Fault) -> None:
        self.script.extend(faults)

    def __enter__(self) -> Self:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.served = self
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def tokens(self, body: dict[str, Any]) -> list[int]:
        with self._lock:
            self.tokenized += 1
            if "prompt" in body:
                special = body.get("add_special_tokens", True)
                return self.tokenizer(body["prompt"], add_special_tokens=special)["input_ids"]
            return self.tokenizer.apply_chat_template(
                [_with_objects(message) for message in body["messages"]],
                tools=body.get("tools"),
                add_generation_prompt=body.get("add_generation_prompt", True),
                return_dict=True,
                **body.get("chat_template_kwargs", {}),
            )["input_ids"]

    def entries(self, model: str, token_ids: list[int]) -> Entries:
        with self._lock, torch.no_grad():
            self.asked.append((model, self.tokenizer.decode(token_ids)))
            tokens = torch.tensor([token_ids])
            logits = self._network(model)(input_ids=tokens, use_cache=False).logits.float()
            logprobs = torch.log_softmax(logits, -1)[0, :-1].gather(-1, tokens[0, 1:, None])
        values = logprobs.squeeze(1).tolist()
        return [
            None,
            *(
                {str(i): {"logprob": v, "rank": 1, "decoded_token": self.tokenizer.decode(i)}}
                for i, v in zip(token_ids[1:], values, strict=True)
            ),
        ]

    def fault(self) -> Fault:
        with self._lock:
            return self.script.popleft() if self.script else self.default

    def _network(self, model: str) -> Any:
        if model not in self._networks:
            network = AutoModelForCausalLM.from_pretrained(self.base_model, dtype=torch.float32)
            adapter = self.models[model]
            if adapter:
                network = PeftModel.from_pretrained(network, adapter)
            self._networks[model] = network.eval()
        return self._networks[model]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The arguments of tool calls as objects, as vLLM gives them to a chat template."""
    message = copy.deepcopy(message)
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return message


class _Server(ThreadingHTTPServer):
    served: LogprobsServer
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        served = self.server.served
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
            return self._send(*unauthorized([]))
        if self.path not in ("/tokenize", "/v1/completions"):
            return self._send(404, b'{"detail":"Not Found"}')
        if body["model"] not in served.models:
            text = f"The model `{body['model']}` does not exist."
            error = {"message": text, "type": "NotFoundError", "param": "model", "code": 404}
            return self._send(404, json.dumps({"error": error}).encode())
        if self.path == "/tokenize":
            tokens = served.tokens(body)
            return self._send(200, json.dumps({"count": len(tokens), "tokens": tokens}).encode())
        assert (body["prompt_logprobs"], body["max_tokens"]) == (0, 1)
        served.closing.wait(served.delay_seconds)
        answer = served.fault()(served.entries(body["model"], body["prompt"]))
        if answer is None:
            served.closing.wait()
            return self._drop()
        if isinstance(answer, tuple):
            return self._send(*answer)
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": answer}
        return self._send(200, json.dumps({"choices": [choice]}).encode())

    def _drop(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
