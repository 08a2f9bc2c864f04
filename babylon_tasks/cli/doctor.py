"""`babylon doctor`: everything that can be wrong before the first step, in one table."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, print_json, wide_console
from babylon_tasks.cli.status import queue_lengths
from babylon_tasks.cli.windows import no_windows
from babylon_tasks.errors import BabylonError, UserError
from babylon_tasks.scoring.judge import ruler_call
from babylon_tasks.scoring.registry import WITH_JUDGE
from babylon_tasks.settings import QUEUES, Settings, load_settings
from babylon_tasks.store import canaries, leases
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Database
from babylon_tasks.store.migrate import pending, require_applied

_PATIENCE_SECONDS = 20.0  # beyond three intervals, before a silent queue is called stuck


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    check: str
    ok: bool
    detail: str


@click.command()
@as_json
def doctor(as_json: bool) -> int:
    """Check servers, migrations, packages, settings and data; exit 0 only if all is well.

    Example: babylon doctor
    """
    settings = load_settings()
    findings = [_find(name, check, settings) for name, check in _CHECKS.items()]
    if as_json:
        print_json([{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        table = Table("check", "", "detail")
        for finding in findings:
            table.add_row(finding.check, "ok" if finding.ok else "NO", finding.detail)
        wide_console().print(table)
    return 0 if all(f.ok for f in findings) else 2


def _find(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name, True, check(settings))
    except BabylonError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - a table with a NO says more than no table
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _postgres(settings: Settings) -> str:
    database = Database(settings.postgres())
    with database.transaction() as tx:
        row = tx.execute("SHOW server_version").fetchone()
    assert row is not None
    return f"{database.name}, version {row['server_version']}"


def _migrations(settings: Settings) -> str:
    missing = pending(settings.postgres())
    if missing:
        raise UserError(f"not applied: {', '.join(missing)}; run `babylon migrate`")
    return "all applied"


def _redis(settings: Settings) -> str:
    lengths = queue_lengths(settings)
    return ", ".join(f"{length} waiting on {queue}" for queue, length in lengths.items())


def _queues(settings: Settings) -> str:
    """Where a message gets stuck between beat and Postgres."""
    limit = 3 * settings.sweep_seconds + _PATIENCE_SECONDS
    waiting = queue_lengths(settings)
    with Database(settings.postgres()).transaction() as tx:
        answered = canaries.read(tx, settings.model_name)
        held = leases.live(tx, settings.model_name)
    told = []
    for queue, resource in zip(QUEUES, ("window/", "model/"), strict=True):
        canary = answered.get(queue)
        if canary is not None and canary.age_seconds <= limit:
            told.append(f"{queue}: {canary.age_seconds:.0f} s ago, {canary.holder}")
            continue
        age = "never" if canary is None else f"{canary.age_seconds:.0f} s ago"
        at_work = next((lease for lease in held if lease.resource.startswith(resource)), None)
        if at_work:
            told.append(f"{queue}: {age}, {at_work.holder} is at work")
        elif waiting[queue]:
            raise UserError(
                f"{waiting[queue]} messages wait on {queue} and nobody takes them (the last one "
                f"{age}): is `celery -A babylon_tasks worker -Q {queue}` running?"
            )
        elif canary is None:
            told.append(f"{queue}: no message yet, start beat and a worker")
        else:
            raise UserError(
                f"nothing comes through {queue} (the last message {age}) and nothing waits there: "
                "is `celery -A babylon_tasks beat` running?"
            )
    return "; ".join(told)


def _permission(settings: Settings) -> str:
    settings.require_training_allowed()
    return "TRAIN_RL_LOCAL=true"


def _trainer(settings: Settings) -> str:
    from workers.lifecycle import check_trainer

    check_trainer(settings)
    return settings.trainer


def _scoring(settings: Settings) -> str:
    from workers.lifecycle import check_judge

    check_judge(settings)
    if settings.scoring not in WITH_JUDGE:
        return settings.scoring
    ruler_call.require_key(settings)
    price = ruler_call.price(settings)
    if price is None:
        if settings.judge_daily_usd is not None:
            raise UserError(ruler_call.no_price(settings))
        return f"{settings.scoring} by {settings.judge_model}, price not known"
    return (
        f"{settings.scoring} by {settings.judge_model}, ${1e6 * price.input:g} and "
        f"${1e6 * price.output:g} for a million tokens in and out"
    )


def _base_model(settings: Settings) -> str:
    folder = Path(settings.base_model)
    looks_local = settings.base_model.startswith((".", "/", "~"))
    if looks_local and not (folder / "config.json").is_file():
        raise UserError(f"BASE_MODEL={settings.base_model} is no model folder (no config.json)")
    return settings.base_model if folder.exists() else f"{settings.base_model}, from the hub"


def _checkpoints(settings: Settings) -> str:
    store = settings.checkpoint_store
    if "://" in store:
        if importlib.util.find_spec("s3fs") is None and store.startswith("s3://"):
            raise UserError("S3 support is not installed: pip install 'babylon-tasks[s3]'")
        return store
    folder = Path(store).resolve()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"CHECKPOINT_STORE={folder} is not writable: {error.strerror} ({existing})"
        ) from None
    return f"{folder}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free"


def _gpu(settings: Settings) -> str:
    from workers.gpu.visible import installed_gpus, visible_gpus

    gpus = visible_gpus()
    if not gpus:
        return "none: one slot on the CPU"
    if installed_gpus() is None:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES names {', '.join(gpus)}, and `nvidia-smi -L` does not say "
            "whether this machine has them: is NVIDIA's driver installed? For the CPU, unset it"
        )
    memory = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return f"{len(gpus)} visible; {'; '.join(memory.stdout.splitlines())}"


def _windows(settings: Settings) -> str:
    database = Database(settings.postgres())
    require_applied(settings.postgres())
    with database.transaction() as tx:
        found = window_rows.listing(tx, settings.model_name, settings)
    ready = [w for w in found if w.can_train]
    if not found or (not ready and all(w.state != "trained" for w in found)):
        raise no_windows(database, settings, found)
    return f"{len(found)} in the last {settings.lookback_hours} hours, {len(ready)} to train"


_CHECKS: dict[str, Callable[[Settings], str]] = {
    "Postgres": _postgres,
    "migrations": _migrations,
    "Redis": _redis,
    "queues": _queues,
    "permission to train": _permission,
    "scoring": _scoring,
    "trainer": _trainer,
    "base model": _base_model,
    "checkpoint store": _checkpoints,
    "GPU": _gpu,
    "windows": _windows,
}
