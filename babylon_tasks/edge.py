"""The package `workers` stands beside this one; a folder may have one of its own, found first."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from babylon_tasks.errors import UserError

_OURS = Path(__file__).resolve().parents[1] / "workers"


def require_our_workers() -> None:
    """Refuse to run where another package of that name hides ours.

    Raises:
        UserError: The first `workers` of the module path is not ours.
    """
    spec = importlib.util.find_spec("workers")
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    if _OURS not in [place.resolve() for place in places]:
        found = places[0] if places else Path((spec and spec.origin) or "workers")
        raise UserError(
            f"{found} hides our package `workers`: start this in another folder, or rename that one"
        )
