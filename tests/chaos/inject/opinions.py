"""Preloaded by the roles of the gate's tests: a trainer whose steps are good or bad.

A step that learns from a window on the list, or continues a bad one, is bad: it has a file of the
name MARK, and answers in no form. Every other version answers well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

MARK = "bad"  # a file in the folder of a step
LIST = "BABYLON_BAD_WINDOWS"  # variable: a file with the ids of the windows, one a line


def install() -> None:
    """Change the trainer that loads no model."""
    import msgspec

    from workers.trainer import noop

    real_step, real_generate = noop.NoopTrainer.step, noop.NoopTrainer.generate

    def step(self: Any, request: Any, on_progress: Any) -> Any:
        result = real_step(self, request, on_progress)
        listed = set(Path(os.environ[LIST]).read_text().split())
        if listed & set(result.windows) or _is_bad(request.parent):
            (Path(request.output_dir) / MARK).write_text("bad")
        return result

    def generate(self: Any, request: Any, on_progress: Any) -> Any:
        result = real_generate(self, request, on_progress)
        text = "buy, buy" if _is_bad(request.checkpoint) else '{"action":"BUY"}'
        generations = [
            [msgspec.structs.replace(each, text=text, token_ids=(1, 2), logprobs=(-0.1, -0.1))
             for each in answers]
            for answers in result.generations
        ]  # fmt: skip
        return msgspec.structs.replace(result, generations=generations)

    noop.NoopTrainer.step, noop.NoopTrainer.generate = step, generate  # type: ignore[method-assign]


def _is_bad(checkpoint: str | None) -> bool:
    return checkpoint is not None and (Path(checkpoint) / MARK).exists()


if "workers.trainer" in sys.orig_argv:
    install()
