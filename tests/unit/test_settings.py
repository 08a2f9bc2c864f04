"""Settings: loading order, error messages, URLs, their frozen list and the files made of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings, changed, load_settings
from babylon_tasks.settings.documentation import SECTIONS, env_example, settings_page
from babylon_tasks.settings.group import load
from babylon_tasks.settings.run_arguments import RunArguments
from babylon_tasks.training.wandb_jobs import require_usable

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).with_name("settings.txt")
FIELDS = {**Settings.model_fields, **RunArguments.model_fields}

# In .env.example for Docker Compose and Flower; no settings of the program.
ONLY_COMPOSE = {"REDIS_PASSWORD", "FLOWER_BASIC_AUTH", "POSTGRES_PASSWORD", "REMAP_SIGTERM"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder without .env, and no setting in the environment."""
    for name in FIELDS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()
    yield tmp_path
    load_settings.cache_clear()


def _example() -> dict[str, str]:
    """Name → default of the commented-out lines in .env.example."""
    text = (ROOT / ".env.example").read_text()
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


def _documented() -> dict[str, str]:
    """Name → default of the tables in docs/settings.md, up to those that others read."""
    text = (ROOT / "docs" / "settings.md").read_text().partition("## Read by others")[0]
    return dict(re.findall(r"^\| `([A-Z0-9_]+)` \|(?: `(.*?)`)? \|", text, re.MULTILINE))


def _with_our_default(defaults: dict[str, str]) -> dict[str, str]:
    """Those of the given settings whose default is the one in the code."""
    found = {}
    for name, field in FIELDS.items():
        value = defaults.get(name.upper())
        same = (
            not value
            if field.default is None
            else value is not None
            and TypeAdapter(field.annotation).validate_strings(value) == field.default
        )
        if same:
            found[name.upper()] = value or ""
    return found


def test_every_setting_is_in_the_example_file_with_its_default() -> None:
    example = {k: v for k, v in _example().items() if k not in ONLY_COMPOSE}
    assert _with_our_default(example) == example
    assert set(example) == {name.upper() for name in FIELDS}
    assert set(_example()) >= ONLY_COMPOSE


def test_every_setting_is_in_the_documentation_with_its_default() -> None:
    documented = _documented()
    assert _with_our_default(documented) == documented
    assert set(documented) == {name.upper() for name in FIELDS}


def test_the_list_of_settings_is_frozen() -> None:
    """A new setting needs a line in settings.txt, with its reason: why no constant would do."""
    lines = [line for line in FROZEN.read_text().splitlines() if not line.startswith("#")]
    reasons = dict(line.split(maxsplit=1) for line in lines)
    assert list(reasons) == sorted(name.upper() for name in Settings.model_fields)


def test_every_setting_belongs_to_one_group_and_has_a_text() -> None:
    named = [name for group in SECTIONS for name in group.model_fields]
    assert len(named) == len(set(named))
    assert set(named) == set(FIELDS)
    for name, field in FIELDS.items():
        text = field.description or ""
        assert text.endswith("."), name
        assert text.isascii(), name  # .env is read with the encoding of the machine
        assert "|" not in text, name  # it is a cell of a table


@pytest.mark.parametrize(
    ("file", "generated"), [(".env.example", env_example), ("docs/settings.md", settings_page)]
)
def test_the_files_are_what_the_settings_say(file: str, generated: Callable[[], str]) -> None:
    written = (ROOT / file).read_text(encoding="utf-8")
    assert written == generated(), "run `python -m babylon_tasks.settings`"


def test_the_settings_load_neither_torch_nor_celery() -> None:
    heavy = "{'torch', 'transformers', 'art', 'litellm', 'celery', 'kombu', 'psycopg'}"
    script = f"import sys, babylon_tasks.settings; print(sorted({heavy} & set(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout == "[]\n"


def test_a_copy_of_the_example_file_changes_nothing(empty_folder: Path) -> None:
    (empty_folder / ".env").write_text((ROOT / ".env.example").read_text())
    assert load_settings() == Settings(_env_file=None)  # type: ignore[call-arg]


def test_the_environment_wins_over_env_local_over_env(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / ".env").write_text("MODEL_NAME=a\nBASE_MODEL=a\nWANDB_PROJECT=a\n")
    (empty_folder / ".env.local").write_text("BASE_MODEL=b\nWANDB_PROJECT=b\n")
    monkeypatch.setenv("WANDB_PROJECT", "c")
    settings = load_settings()
    assert (settings.model_name, settings.base_model, settings.wandb_project) == ("a", "b", "c")


@pytest.mark.parametrize("closed", [".env", "."])
def test_a_file_of_another_user_is_named(empty_folder: Path, closed: str) -> None:
    """As `sudo -u babylon` in root's folder, or root's .env with mode 600."""
    (empty_folder / ".env").write_text("MODEL_NAME=a\n")
    user = os.geteuid()
    try:
        (empty_folder / closed).chmod(0)
        if user == 0:  # who may read all
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"^\.env and .* \(Permission denied\): let this user"):
            load_settings()
    finally:
        os.seteuid(user)
        empty_folder.chmod(0o700)


def test_arguments_of_a_run_are_read_as_settings_are_and_are_none(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(RunArguments) == RunArguments(mode="single")
    (empty_folder / ".env").write_text("MODE=list\nWINDOW_ID=a\nBATCH_ID=a\n")
    (empty_folder / ".env.local").write_text("WINDOW_ID=b\nBATCH_ID=b\n")
    monkeypatch.setenv("BATCH_ID", "c")
    monkeypatch.setenv("MODEL_VERSION", "")
    assert load(RunArguments) == RunArguments(mode="list", window_id="b", batch_id="c")
    monkeypatch.setenv("MODE", "s3cret")
    with pytest.raises(UserError, match=r"^MODE: Input should be 'list', 'single' or 'continuous'"):
        load(RunArguments)
    load_settings()  # what is wrong with a run does not stop a worker


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "")
    monkeypatch.setenv("DATABASE_URL", "")
    assert load_settings().lease_seconds == 30
    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIN_AGENTS_PER_WINDOW", "s3cret"),
        ("MIN_AGENTS_PER_WINDOW", "-731"),
        ("LEARNING_RATE", "731"),
        ("PASSES", "731"),
        ("WINDOWS_PER_UPDATE", "-731"),
        ("RATIO_CAP", "-731"),
        ("UNRECORDED_RATIO", "s3cret"),
        ("KL_REFERENCE", "s3cret"),
        ("TRAINER", "s3cret"),
        ("TRAIN_RL_LOCAL", "s3cret"),
        ("MODEL_NAME", "s3cret/../../x"),
        ("LOG_LEVEL", "s3cret"),
        ("LINEAGES", "a,s3cret/../../x"),
        ("LINEAGES", "a b"),
        ("LINEAGES", " , "),
        ("LINEAGE_WEIGHT", "-731"),
        ("AGENTS", "a%,s3cret\\"),
        ("EXCLUDED_SCENARIOS", "s3cret\\,b%"),
        ("BASE_MODEL_REVISION", "main"),
        ("JUDGE_BASE_URL", "s3cret"),
        ("JUDGE_BASE_URL", "localhost:8000/s3cret"),
        ("JUDGE_BASE_URL", "ftp://u:s3cret@h/v1"),
        ("JUDGE_BASE_URL", "http://u:s3cret@h:x/v1"),
        ("JUDGE_BASE_URL", "http://u:s3cret@h:99999/v1"),
        ("JUDGE_BASE_URL", "http://u:s3 cret@h/v1"),
        ("JUDGE_BASE_URL", "http:///s3cret"),
        ("JUDGE_BASE_URL", "http://[::1/s3cret"),
        ("JUDGE_BASE_URL", "http://h/s3cret\x1b"),
        ("JUDGE_API_KEY", "s3cret s3cret"),
        ("JUDGE_API_KEY", "s3cret\nx"),
        ("JUDGE_API_KEY", "s3cret\u00e4"),
    ],
)
def test_a_wrong_value_names_the_variable_never_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        load_settings()
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert value.strip("-") not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("https://h/v1", "https://h/v1"),
        (" 'https://h:8443/v1/' ", "https://h:8443/v1"),
        ('"http://h/v1/chat/completions"', "http://h/v1"),
        ("http://h/openai/d/chat/completions/?api-version=1", "http://h/openai/d?api-version=1"),
        ("http://u:p%40@[::1]:80/v1", "http://u:p%40@[::1]:80/v1"),
        ("HTTPS://h", "https://h"),
    ],
)
def test_a_judges_address_is_read_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, given: str, read: str
) -> None:
    monkeypatch.setenv("JUDGE_BASE_URL", given)
    settings = load_settings()
    assert settings.judge_base_url == read
    assert changed(settings, lease_seconds=31).judge_base_url == read
    assert "p%40" not in repr(settings)


def test_a_key_is_read_without_quotes_and_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", " 's3cret-key'\n")
    monkeypatch.setenv("JUDGE_MODEL", '"openai/judge" ')
    assert load_settings().judge_model == "openai/judge"
    key = load_settings().judge_api_key
    assert key is not None
    assert key.get_secret_value() == "s3cret-key"


def test_lists_are_read_without_spaces_and_empty_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().lineage_names() is None
    assert load_settings().agent_patterns() == []
    monkeypatch.setenv("LINEAGES", " b, a-1.x ,, b")
    monkeypatch.setenv("AGENTS", "bot-%, a\\_1 ,b\\\\")
    load_settings.cache_clear()
    assert load_settings().lineage_names() == ["b", "a-1.x"]
    assert load_settings().agent_patterns() == ["bot-%", "a\\_1", "b\\\\"]


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@h/db")
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@h:6379/0")
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    assert "s3cret" not in repr(load_settings())


def test_a_key_of_wandb_chooses_its_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().trainer == "torch"
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    load_settings.cache_clear()
    assert load_settings().trainer == "serverless"
    assert changed(load_settings(), model_name="other").trainer == "serverless"
    for named in ("torch", "noop"):
        monkeypatch.setenv("TRAINER", named)
        load_settings.cache_clear()
        assert load_settings().trainer == named
    monkeypatch.setenv("TRAINER", "")
    load_settings.cache_clear()
    assert load_settings().trainer == "serverless"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "OpenPipe/Qwen3-14B-Instruct or Qwen/Qwen3-30B-A3B-Instruct-2507, or TRAINER=torch"),
        ({"wandb_api_key": None}, "WANDB_API_KEY is not set"),
        ({"wandb_api_key": "a key"}, "WANDB_API_KEY is no key"),
    ],
)
def test_what_w_and_b_would_not_train_is_refused(changes: dict[str, str], says: str) -> None:
    settings = Settings(**{"trainer": "serverless", "wandb_api_key": "s3cret", **changes})
    with pytest.raises(UserError, match=says) as caught:
        require_usable(settings)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_a_missing_server_is_said_in_one_line(name: str) -> None:
    settings = load_settings()
    with pytest.raises(UserError, match=f"^{name} is not set: .*$"):
        _ = settings.postgres() if name == "DATABASE_URL" else settings.redis()


def test_nothing_trains_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="TRAIN_RL_LOCAL=true"):
        load_settings().require_training_allowed()
    load_settings.cache_clear()
    monkeypatch.setenv("TRAIN_RL_LOCAL", "true")
    load_settings().require_training_allowed()


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEASE_SECONDS", "inf"), ("SETTLE_SECONDS", "9" * 20), ("MAX_ATTEMPTS", "9" * 20),
     ("CHECKPOINT_STORE", "foo://x"), ("KL_PENALTY", "inf"), ("HEARTBEAT_SECONDS", "100")],
)  # fmt: skip
def test_values_out_of_bounds_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    with pytest.raises(UserError, match=name):
        load_settings()
    load_settings.cache_clear()


def test_an_env_file_of_another_encoding_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("MODE=list".encode("utf-16"))
    load_settings.cache_clear()
    with pytest.raises(UserError, match="UTF-8"):
        load_settings()
    load_settings.cache_clear()


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"MAX_PER_WINDOW": "2", "MIN_AGENTS_PER_WINDOW": "3"}, "MAX_PER_WINDOW must be at least"),
        ({"JUDGE_INPUT_USD_PER_MILLION": "1"}, "go together: set both, or neither"),
    ],
)
def test_settings_that_do_not_fit_each_other(
    env: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=why):
        load_settings()
