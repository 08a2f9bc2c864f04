"""Requests to a role's processes to harm themselves at a chosen call."""

from __future__ import annotations

import json
import pkgutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "inject"


@dataclass(frozen=True, slots=True)
class Injection:
    """Harm before or after `call`, a function or method by its full path.

    Args:
        call: For example `babylon_tasks.store.transitions.claim_due`.
        do: `kill` is SIGKILL to itself, `kill_parent` to the parent first; `exit` ends with code 1
            at once; `raise` raises `error(*arguments)`; `hang` never returns; `sleep` waits.
        at: An `after` that raised is none.
        seconds: For `sleep`.
        once: The first process that creates this file does the harm, and no other.
        text: Only when it occurs in the repr of the call's arguments.
        within: Only in processes whose command line contains it, such as `worker -Q cpu`.
        error: Full path of an exception.
    """

    call: str
    do: Literal["kill", "kill_parent", "exit", "raise", "hang", "sleep"]
    at: Literal["before", "after"] = "before"
    seconds: float = 0.0
    once: Path | None = None
    text: str | None = None
    within: str | None = None
    error: str = "builtins.RuntimeError"
    arguments: tuple[Any, ...] = ("injected",)

    def __post_init__(self) -> None:
        pkgutil.resolve_name(self.call)  # a mistyped name would do no harm, and pass every test


def injecting(*injections: Injection, python_path: str = "") -> dict[str, str]:
    """Return the environment of a role that does this harm."""
    wishes = []
    for injection in injections:
        wish = {name: value for name, value in asdict(injection).items() if value is not None}
        wish["in"] = wish.pop("within", "")
        wishes.append(wish)
    path = f"{FOLDER}:{python_path}" if python_path else str(FOLDER)
    return {"BABYLON_INJECT": json.dumps(wishes, default=str), "PYTHONPATH": path}
