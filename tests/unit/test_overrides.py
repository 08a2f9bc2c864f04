"""Overrides of a lineage: they are validated and refused as the environment's settings are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.settings.group import load
from babylon_tasks.settings.overrides import (
    FIXED_BY_FIRST_STEP,
    OVERRIDABLE,
    parse_overrides,
    with_overrides,
)

KEYS = sorted(name.upper() for name in OVERRIDABLE)
NUMBERS = st.one_of(st.integers(), st.floats()).map(str)
WORDS = st.sampled_from(
    ["ruler", "wait", "x%,y\\", "https://host/v1", "none", "true", "1e3", " 3 "]
)


@pytest.fixture(autouse=True, scope="module")
def no_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder without .env, and no setting in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.chdir(tmp_path_factory.mktemp("folder"))
        load_settings.cache_clear()
        yield
    load_settings.cache_clear()


def outcome(key: str, value: str) -> Settings | str:
    """The settings with this override, or why it is refused."""
    try:
        return with_overrides(Settings(), {key: value})
    except UserError as error:
        return str(error)


def outcome_of_the_environment(key: str, value: str) -> Settings | str:
    """The settings with this variable, or why it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(key, value)
        try:
            return load(Settings)
        except UserError as error:
            return str(error)


def test_overrides_take_the_place_of_the_settings() -> None:
    typed = ["scoring=ruler", "Judge_Model=a/b=c", "MAX_PER_WINDOW=8", "kl_penalty=0"]
    overrides = parse_overrides(typed)
    assert overrides == {
        "SCORING": "ruler",
        "JUDGE_MODEL": "a/b=c",
        "MAX_PER_WINDOW": "8",
        "KL_PENALTY": "0",
    }
    own = with_overrides(Settings(dropout=0.25), overrides)
    assert (own.scoring, own.judge_model, own.max_per_window) == ("ruler", "a/b=c", 8)
    assert (own.kl_penalty, own.dropout) == (0, 0.25)


def test_an_override_wins_over_the_environment_and_an_empty_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCORING", "correctness")
    settings = load(Settings)
    assert with_overrides(settings, {"SCORING": "ruler"}).scoring == "ruler"
    assert parse_overrides(["SCORING="]) == {"SCORING": ""}
    assert with_overrides(settings, {"SCORING": ""}) == settings
    assert with_overrides(settings, {"DROPOUT": "0.5"}).scoring == "correctness"


@given(st.sampled_from(KEYS), st.one_of(st.text(), NUMBERS, WORDS))
def test_any_text_is_a_value_or_refused_in_one_line(key: str, value: str) -> None:
    result = outcome(key, value)
    if isinstance(result, str):
        assert re.match(rf"{key}: |settings: ", result)
        assert result.isprintable()


CARRIED = st.text(st.characters(codec="utf-8", exclude_characters="\0"))  # by an environment


@given(st.sampled_from(KEYS), st.one_of(CARRIED, NUMBERS, WORDS))
def test_an_override_is_judged_as_the_environments_text_is(key: str, value: str) -> None:
    assert outcome(key, value) == outcome_of_the_environment(key, value)


def test_overrides_must_fit_each_other_and_the_environment() -> None:
    crowded = Settings(min_agents_per_window=5)
    with pytest.raises(UserError, match="MAX_PER_WINDOW must be at least MIN_AGENTS_PER_WINDOW"):
        with_overrides(crowded, {"MAX_PER_WINDOW": "4"})
    both = {"MAX_PER_WINDOW": "4", "MIN_AGENTS_PER_WINDOW": "3"}
    assert with_overrides(crowded, both).max_per_window == 4
    with pytest.raises(UserError, match="go together: set both, or neither"):
        with_overrides(Settings(), {"JUDGE_INPUT_USD_PER_MILLION": "1"})


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ("SCORING", "an override is KEY=VALUE"),
        ("=ruler", " is no setting"),
        ("NO_SUCH=1", "NO_SUCH is no setting: docs/settings.md"),
        ("MODE=list", "MODE is no setting"),
        ("a\nb\x1b[1m=1", "A B\ufffd.1M is no setting"),
        ("DATABASE_URL=s3cret", "DATABASE_URL is a setting of the whole deployment"),
        ("JUDGE_API_KEY=s3cret", "JUDGE_API_KEY is a setting of the whole deployment"),
        ("judge_daily_usd=1", "JUDGE_DAILY_USD is a setting of the whole deployment"),
        ("TRAIN_RL_LOCAL=true", "TRAIN_RL_LOCAL is a setting of the whole deployment"),
        ("BASE_MODEL=s3cret", "BASE_MODEL is fixed when a lineage is created"),
        ("MODEL_NAME=", "MODEL_NAME is fixed when a lineage is created"),
    ],
)
def test_other_keys_are_refused_in_one_line(pair: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as raised:
        parse_overrides([pair])
    assert "s3cret" not in str(raised.value)
    assert str(raised.value).isprintable()
    key, equals, _ = pair.upper().partition("=")
    if equals:
        with pytest.raises(UserError, match=why):  # a row that was written by hand
            with_overrides(Settings(), {key: "1"})


def test_what_belongs_to_the_deployment_cannot_be_overridden() -> None:
    """Secrets, servers, machines, and what a lineage's row has itself."""
    fixed = {name.upper() for name in Settings.model_fields} - set(KEYS)
    secrets = {name for name in fixed if "SecretStr" in str(_annotation(name))}
    assert secrets == {
        "DATABASE_URL", "REDIS_URL", "JUDGE_API_KEY", "LOGPROBS_API_KEY", "WANDB_API_KEY",
        "SERVE_API_KEY", "VLLM_API_KEY",
    }  # fmt: skip
    assert fixed - secrets == {
        "VLLM_URLS", "VLLM_PYTHON", "VLLM_ARGUMENTS", "SERVE_ADAPTERS", "SERVE_REQUESTS",
        "SERVE_SECONDS", "CAPTURE_CALLS", "CAPTURE_DAYS", "CAPTURE_ROWS", "FORM_CHECK",
        "MODEL_NAME", "PRIMARY", "BASE_MODEL", "BASE_MODEL_REVISION", "CHECKPOINT_STORE",
        "JUDGE_DAILY_USD", "TRAIN_RL_LOCAL", "TRAINER", "GPU_USD_PER_HOUR",
        "TRAINER_STALL_SECONDS", "TRAINER_IDLE_SECONDS", "WANDB_PROJECT", "WANDB_ENTITY",
        "WANDB_MODE", "SERVERLESS_URL", "SERVERLESS_USD_PER_JOB", "SERVERLESS_LOST_SECONDS",
        "LINEAGES", "LEASE_SECONDS", "HEARTBEAT_SECONDS", "SWEEP_SECONDS", "PRODUCE_SECONDS",
        "LOG_LEVEL", "LOG_FORMAT",
    }  # fmt: skip
    assert set(KEYS) >= FIXED_BY_FIRST_STEP


def _annotation(name: str) -> object:
    return Settings.model_fields[name.lower()].annotation


def test_the_documentation_says_which_may_be_overridden() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    assert sorted(re.findall(r"^\| `([A-Z_]+)` \|[^|]*\| yes \|", page, re.M)) == KEYS


def test_an_override_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker lives longer than its folder's .env."""
    settings = Settings()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("DROPOUT=0.5\nMODEL_NAME=é\n".encode("latin-1"))
    own = with_overrides(settings, {"SCORING": "ruler"})
    assert (own.dropout, own.model_name) == (settings.dropout, settings.model_name)
    assert os.environ.get("DROPOUT") is None
