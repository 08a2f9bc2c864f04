"""Which chat templates are refused before the first step, and in what words."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
from transformers import AutoTokenizer

from babylon_tasks.errors import UserError
from tests.unit.tiny import CHAT_TEMPLATE, make_tiny_model
from workers.trainer.torch.chat_format import ChatFormat

RAISES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT_TEMPLATE
)
SKIPS = CHAT_TEMPLATE.replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
)
ONLY_QUESTIONS = CHAT_TEMPLATE.replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'assistant' %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def chat_format(folder: Path, template: str | None) -> ChatFormat:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, "org/model")


def test_a_template_with_all_roles_is_taken(folder: Path) -> None:
    chat = chat_format(folder, CHAT_TEMPLATE)
    assert chat.tokenizer.decode(chat.end_ids) == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template: choose"),
        (RAISES, r"has no system role \(TemplateError: System role not supported\)"),
        (SKIPS, r"has no system role \(it leaves messages out\)"),
        (ONLY_QUESTIONS, r"has no user role \(it leaves messages out\)"),
        ("{% if %}", r"has no user role \(TemplateSyntaxError"),
    ],
)
def test_a_template_that_leaves_out_what_an_agent_saw_is_refused(
    folder: Path, template: str | None, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        chat_format(folder, template)
    assert "BASE_MODEL=org/model" in str(refused.value)
    assert "\n" not in str(refused.value)
