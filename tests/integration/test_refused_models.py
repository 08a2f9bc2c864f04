"""A base model that cannot be trained ends in one line, and blames no window."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

from babylon_tasks import pipeline
from babylon_tasks.errors import UserError
from babylon_tasks.work.context import Context
from tests.clock import let_waits_pass
from tests.rows import one, query, scored_windows
from tests.unit.tiny import make_tiny_model
from workers.trainer.torch.trainer import TorchTrainer

SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no system role": (
        lambda folder: (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ raise_exception('no system') if m.role == 'system' }}"
            "{{ m.content }}{% endfor %}"
        ),
        "has no system role",
    ),
    "endless": (
        lambda folder: (folder / "chat_template.jinja").write_text(SLOW),
        "does not end in",
    ),
    "code": (
        lambda folder: rewrite(
            folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}
        ),
        "brings code of its own",
    ),
    "embeddings": (
        lambda folder: rewrite(folder / "config.json", vocab_size=100),
        "embeddings",
    ),
    "weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
        "cannot be loaded",
    ),
}


def test_no_window_is_blamed_for_the_model(
    make_context: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind in turn, then the whole model: the same windows are trained."""
    monkeypatch.setattr("workers.trainer.torch.template.RENDER_SECONDS", 0.3)
    folder = Path(make_tiny_model(tmp_path / "model"))
    context = make_context(base_model=str(folder))
    scored_windows(context, 2)
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    trainer = TorchTrainer("cpu-0")
    for spoil, reason in SPOILED.values():
        spoil(folder)
        with pytest.raises(UserError, match=reason):
            pipeline.train(context, trainer)
        rows = query(context, "SELECT state, attempts, last_error FROM rl.windows")
        assert {(row["state"], row["attempts"]) for row in rows} == {("scored", 0)}
        assert all(reason in row["last_error"] for row in rows)
        assert query(context, "SELECT * FROM rl.leases") == []
        for file, content in whole.items():
            file.write_bytes(content)
        let_waits_pass(context)
    assert pipeline.train(context, trainer) is not None
    assert one(context, "SELECT count(*) FILTER (WHERE state = 'trained') AS n FROM rl.windows")[
        "n"
    ]
