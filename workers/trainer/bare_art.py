"""ART's modules without what `import art` brings: litellm, polars, openai and more, seconds of it.

A step calls a function or two of ART's, whose own modules import little.
"""

from __future__ import annotations

import importlib.util
import sys

# Packages whose `__init__` imports far more than the modules that we use of them need.
_BARE = ("art", "art.utils", "art.serverless")


def use_bare_art() -> None:
    """Make `from art.loss import loss_fn` import that module alone, not all of ART.

    For a process of its own, before anything imports ART: `art` itself stays empty in it.

    Raises:
        ModuleNotFoundError: ART is not installed.
    """
    for name in _BARE:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # found, and not run
