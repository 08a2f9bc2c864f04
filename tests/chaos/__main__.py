"""`python -m tests.chaos soak|bare --seconds 600 --seed 1 --count 2000`: one run, as JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.chaos.bare import BareReport, run_bare
from tests.chaos.servers import Servers
from tests.chaos.soak import SoakReport, run_soak
from tests.chaos.world import World


@contextmanager
def _new_world(kept: Path | None) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="babylon-chaos-") as name:
        servers = Servers(Path(name))
        folder = kept or Path(name) / "world"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with World(servers, folder) as world:
                yield world
        finally:
            servers.stop()


def main() -> None:
    """Run one and print its report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("what", choices=["soak", "bare"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200, help="windows, or tasks")
    parser.add_argument("--folder", type=Path, help="where the roles' logs stay")
    wish = parser.parse_args()
    with _new_world(wish.folder) as world:
        report: SoakReport | BareReport
        if wish.what == "soak":
            report = run_soak(world, wish.seconds, wish.seed, windows=wish.count)
        else:
            report = run_bare(world, wish.count, wish.seconds, wish.seed)
    print(json.dumps(asdict(report), indent=2))


if __name__ == "__main__":
    main()
