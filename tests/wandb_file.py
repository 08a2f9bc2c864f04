"""Reads what wandb wrote in offline mode: its file is a LevelDB log of protobuf records."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER_BYTES = 7  # magic and version of wandb's own
_BLOCK_BYTES = 32_768
_FULL, _LAST = 1, 4  # kinds of a part that ends a record


@dataclass(frozen=True)
class OfflineRun:
    """One file: the run it belongs to, its configuration, and metrics by step."""

    run_id: str
    name: str
    project: str
    config: dict[str, Any]
    history: dict[int, dict[str, Any]]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Every offline run below the folder, in the order in which they were begun."""
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _read(path: Path) -> OfflineRun:
    found: Record | None = None
    config: dict[str, Any] = {}
    history: dict[int, dict[str, Any]] = {}
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found = record
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
            history[record.history.step.num] = row
    assert found is not None, path
    run = found.run
    return OfflineRun(run.run_id, run.display_name, run.project, config, history)


def _records(data: bytes) -> list[Record]:
    records, part, at = [], b"", _HEADER_BYTES
    while at + 7 <= len(data):
        left_in_block = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left_in_block < 7:
            at += left_in_block  # too short for another part: padding
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records
