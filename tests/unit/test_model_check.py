"""What `babylon doctor` says of a base model before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from babylon_tasks.cockpit.hub import is_cached
from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from tests.unit.tiny import make_tiny_model
from workers.model_check import check_template
from workers.trainer import check


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(make_tiny_model(tmp_path_factory.mktemp("tiny")))
    (folder / "model.safetensors").unlink()  # it is not looked at
    return folder


def settings(base_model: object, trainer: str = "torch") -> Settings:
    return Settings(base_model=str(base_model), trainer=trainer, _env_file=None)


def test_a_model_that_can_be_trained_is_told_with_its_end(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check.main(str(folder)) == 0
    assert capsys.readouterr().out == "qwen2, an answer ends with '<|im_end|>'\n"


def test_one_that_cannot_is_refused_in_the_trainers_words(folder: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(folder, tmp_path / "spoiled")
    (spoiled / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match=r"has no user role \(TemplateSyntaxError") as refused:
        check_template(settings(spoiled), is_cached)
    assert "\n" not in str(refused.value)


def test_a_trainer_without_torch_needs_no_template() -> None:
    assert check_template(settings("org/x", trainer="noop"), is_cached).startswith("not checked:")


def test_what_is_not_downloaded_is_not_blamed() -> None:
    assert check_template(settings("org/not-downloaded"), is_cached).startswith("not checked here")
