"""Versions of the packages that the weights of a step depend on, for the step's recipe."""

from __future__ import annotations

import functools
from importlib import metadata

_PACKAGES = ("babylon-tasks", "openpipe-art", "torch", "transformers", "peft")


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions by package name; what is not installed is left out. Do not change it."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
