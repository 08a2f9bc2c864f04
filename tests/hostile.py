"""Messages that no one of ours sends, as the bytes that Redis holds."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from pathlib import Path
from typing import Any


class _Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


def message(
    task: Any = "babylon.produce",
    args: Any = (),
    kwargs: Any = None,
    body: bytes | None = None,
    task_id: Any = None,
    content_type: Any = "application/json",
    content_encoding: Any = "utf-8",
    properties: dict[str, Any] | None = None,
    headers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A message as Celery lays it into a Redis list, with any part changed."""
    task_id = task_id or str(uuid.uuid4())
    if body is None:
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        body = json.dumps([args, kwargs or {}, embed]).encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            "group": None,
            "argsrepr": repr(args),
            "kwargsrepr": repr(kwargs or {}),
            "origin": "nobody@nowhere",
            **(headers or {}),
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "cpu", "routing_key": "cpu"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            **(properties or {}),
        },
    }


def without(given: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A message without one of its parts."""
    return {key: value for key, value in given.items() if key not in keys}


def hostile(trap: Path) -> dict[str, bytes]:
    """Name → bytes. `trap` appears where a pickle was loaded."""
    found: dict[str, Any] = {
        "nothing": b"",
        "no text": b"\xff\xfe\x00garbage\x80",
        "NUL": b"\x00",
        "no JSON": b"hello",
        "cut JSON": b'{"body": "',
        "deep JSON": b"[" * 100_000,
        "deep in a header": json.dumps(message()).encode().replace(
            b'"py"', b"[" * 900 + b"]" * 900),
        "huge number": b"1" * 5000,
        "NaN": b"NaN",
        "null": None,
        "a number": 7,
        "a text": "celery",
        "a list": [1, 2],
        "an empty object": {},
        "odd type": {"__type__": "datetime", "__value__": "never"},
        "odd type 2": {"__type__": "decimal", "__value__": "x"},
        "no properties": without(message(), "properties"),
        "no headers": without(message(), "headers"),
        "no body": without(message(), "body"),
        "no content type": without(message(), "content-type"),
        "null everywhere": dict.fromkeys(message()),
        "headers are a list": {**message(), "headers": ["task"]},
        "body is no base64": {**message(), "body": "%%%"},
        "body is an object": {**message(), "body": {"a": 1}},
        "body is no JSON": message(body=b"\xff{{{"),
        "body is a number": message(body=b"7"),
        "body is an object in base64": message(body=b'{"a": 1}'),
        "body of two": message(body=b"[[], {}]"),
        "body deep": message(body=b"[" * 100_000),
        "unknown body encoding": message(properties={"body_encoding": "rot13"}),
        "no delivery tag": {**message(), "properties": without(message()["properties"],
                                                              "delivery_tag")},
        "tag is a list": message(properties={"delivery_tag": [1]}),
        "tag is null": message(properties={"delivery_tag": None}),
        "no delivery info": message(properties={"delivery_info": None}),
        "pickle": message(body=pickle.dumps(([], {}, _Touch(trap))),
                          content_type="application/x-python-serialize",
                          content_encoding="binary"),
        "pickle called json": message(body=pickle.dumps(_Touch(trap))),
        "pickle, protocol 1": {
            **message(body=pickle.dumps({"task": "babylon.produce", "id": _Touch(trap)}),
                      content_type="application/x-python-serialize", content_encoding="binary"),
            "headers": {}},
        "yaml": message(body=b"!!python/object/apply:os.system ['id']",
                        content_type="application/x-yaml"),
        "unknown content type": message(content_type="application/nonsense"),
        "content type is a list": message(content_type=["application/json"]),
        "unknown charset": message(content_encoding="klingon"),
        "charset utf-16": message(content_encoding="utf-16"),
        "codec zlib": message(content_encoding="zlib_codec"),
        "compressed nonsense": message(headers={"compression": "application/x-gzip"}),
        "compression is a list": message(headers={"compression": ["gzip"]}),
        "unknown task": message("babylon.nonsense"),
        "a built-in task": message("celery.backend_cleanup"),
        "celery.chord": message("celery.chord_unlock", ["x"] * 3),
        "task is a number": message(7),
        "task is a list": message(["babylon.produce"]),
        "task with a line break": message("x\nERROR forged: line"),
        "wrong types": message("babylon.score", ["not a list", 2, 3]),
        "none for a list": message("babylon.score", [None]),
        "a number for a list": message("babylon.enqueue", [7]),
        "too many arguments": message("babylon.produce", list(range(1000))),
        "too few arguments": message("babylon.canary"),
        "an older release's arguments": message("babylon.score", [["2025-01-01T00:00"]]),
        "arguments are an object": message("babylon.score", {"a": 1}),
        "kwargs are a list": message("babylon.score", [], [1]),
        "unknown kwargs": message("babylon.produce", [], {f"k{n}": n for n in range(10_000)}),
        "kwarg self": message("babylon.train", [], {"self": 1}),
        "SQL": message("babylon.enqueue", [["2025-99-99T00:00", "'; DROP TABLE trajectories; --"]]),
        "NUL in a window": message("babylon.enqueue", [["2025-01-01T00:00\x00"]]),
        "surrogate in a window": message("babylon.enqueue", [["\ud800"]]),
        "deep arguments": message(body=b"[[" + b"[" * 900 + b"]" * 900 + b'],{},{}]'),
        "unknown lineage": message("babylon.enqueue", [["2025-01-01T00:00"], "other-model"]),
        "eta far": message(headers={"eta": "9999-12-31T23:59:59+00:00"}),
        "eta is nonsense": message(headers={"eta": "tomorrow"}),
        "eta is a number": message(headers={"eta": 1e300}),
        "eta is out of range": message(headers={"eta": "99999-01-01T00:00:00"}),
        "expired": message(headers={"expires": "2001-01-01T00:00:00+00:00"}),
        "expires is nonsense": message(headers={"expires": [1]}),
        "time limit": message(headers={"timelimit": [1e-9, "x"]}),
        "time limit is text": message(headers={"timelimit": "ab"}),
        "retries": message(headers={"retries": "many"}),
        "reply to": message(properties={"reply_to": 7}),
        "id is a list": message(task_id=[1]),
        "id of a line break": message(task_id="x\nERROR forged: line\x1b[2J"),
        "id of a megabyte": message(task_id="i" * 1_000_000),
        "chain": message(body=json.dumps([[], {}, {"chain": [{"task": "x"}], "callbacks": [7],
                                                   "errbacks": [{}], "chord": 7}]).encode()),
        "group": message(headers={"group": [1], "group_index": "x"}),
        "stamps": message(headers={"stamps": 7, "stamped_headers": [[1]]}),
        "argsrepr is a list": message(headers={"argsrepr": [1], "kwargsrepr": 7}),
        "priority": message(properties={"priority": "high"}),
        "20 MB": message("babylon.enqueue", [["x" * 20_000_000]]),
    }  # fmt: skip
    return {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in found.items()
    }
