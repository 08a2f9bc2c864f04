"""Whether BASE_MODEL can be trained, asked of a process that may import transformers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings

_LATER = "not checked here: it is when the trainer first loads it"
_SECONDS = 120.0  # ten are enough where nothing else runs


def check_template(settings: Settings, is_cached: Callable[[str], bool]) -> str:
    """Check BASE_MODEL's configuration, tokenizer and chat template, without its weights.

    A hub model of which `is_cached` is false is checked when it is first loaded.

    Raises:
        UserError: It cannot be trained; the message says why.
    """
    if settings.trainer != "torch" or importlib.util.find_spec("transformers") is None:
        return "not checked: this machine does not train by torch"
    local = Path(settings.base_model).is_dir()
    if not local and not is_cached(settings.base_model):
        return _LATER
    command = [sys.executable, "-m", "workers.trainer.check", settings.base_model]
    if settings.base_model_revision and not local:
        command.append(settings.base_model_revision)
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and settings of this deployment
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not checked: transformers took more than {_SECONDS:g} s"
    if done.returncode == 0:
        return done.stdout.strip()
    *_, reason = done.stderr.strip().splitlines() or ["it said nothing"]
    if done.returncode != 2 or (not local and "cannot be loaded" in reason):
        return _LATER
    raise UserError(reason)
