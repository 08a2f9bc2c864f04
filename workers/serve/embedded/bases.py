"""The base models in memory: one for each that a loaded version needs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Collection

import torch

from babylon_tasks.errors import BabylonError
from babylon_tasks.text import first_line
from workers.serve.backend import CannotServe, Version
from workers.serve.embedded.base import Base
from workers.trainer.torch.base_model import base_revision


class Bases:
    """Loads base models; not for the event loop, and for one thread at a time."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bases: list[Base] = []
        self._lock = threading.Lock()

    def find(self, version: Version) -> Base | None:
        """Return the base model of a version, if it is in memory."""
        for base in self._bases:
            if base.base_model == version.base_model and version.base_revision in (
                None,
                base.revision,
            ):
                return base
        return None

    def get(self, version: Version, used: Collection[Base]) -> Base:
        """Return the base model of a version; one that is not among `used` makes room for it.

        Raises:
            CannotServe: It cannot be loaded, or is not the revision that the version needs.
        """
        with self._lock:
            if (base := self.find(version)) is not None:
                return base
            try:
                revision = base_revision(version.base_model, version.base_revision)
                self._bases = [base for base in self._bases if base in used]
                gc.collect()  # a network is full of circles
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                base = Base(version.base_model, revision, self._device)
            except BabylonError as error:
                raise CannotServe(str(error)) from error
            except Exception as error:  # a network may raise anything when it is tried
                raise CannotServe(
                    f"cannot load the base model {version.base_model}: {first_line(error)}"
                ) from error
            self._bases.append(base)
            return base
