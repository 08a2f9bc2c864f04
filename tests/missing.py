"""What a test needs and this machine lacks."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(why: str) -> NoReturn:
    """Skip the test on a laptop; fail it in CI, where everything is there."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
