"""`babylon doctor`: everything that can be wrong before the first step, in one table."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, print_json, wide_console
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.cockpit import checks, machine
from babylon_tasks.cockpit.checks import Check
from babylon_tasks.cockpit.hub import is_cached
from babylon_tasks.cockpit.learning import learning
from babylon_tasks.cockpit.promotions import promotion
from babylon_tasks.settings import load_settings


@click.command()
@as_json
def doctor(as_json: bool) -> int:
    """Check servers, migrations, packages, settings and data; exit 0 only if all is well.

    Example: babylon doctor
    """
    settings = load_settings()
    findings, wanted = [], _checks()
    with progress("looking", quiet=as_json) as shown:
        for number, (name, check) in enumerate(wanted.items(), start=1):
            shown.say(f"looking at: {name}", number, len(wanted))
            findings.append(checks.run(name, check, settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("check", "", "detail")
        for finding in findings:
            table.add_row(finding.check, "ok" if finding.ok else "NO", finding.detail)
        wide_console().print(table)
    return 0 if all(finding.ok for finding in findings) else 2


def _checks() -> dict[str, Check]:
    """Every check by its name, in the order of the table."""
    from workers.gpu.nvml import descriptions
    from workers.gpu.visible import visible_gpus
    from workers.lifecycle import check_judge, check_trainer
    from workers.model_check import check_template

    return {
        "Postgres": checks.postgres,
        "tables": checks.tables,
        "migrations": checks.migrations,
        "Redis": checks.redis,
        "queues": checks.queues,
        "machines": checks.machines,
        "permission to train": machine.permission,
        "scoring": lambda settings: machine.scoring(settings, check_judge),
        "trainer": lambda settings: machine.trainer(settings, check_trainer),
        "base model": machine.base_model,
        "chat template": lambda settings: check_template(settings, is_cached),
        "checkpoint store": machine.checkpoint_store,
        "GPU": lambda _: machine.gpus(visible_gpus(), descriptions()),
        "windows": checks.windows,
        "learning": learning,
        "promotion": promotion,
    }
