"""What a recipe holds and does not hold, and how two are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from babylon_tasks.errors import UserError
from babylon_tasks.records.recipes import (
    ParentStep,
    Recipe,
    SamplesRecipe,
    WindowRecipe,
    differences,
    read_recipe,
)
from babylon_tasks.records.steps import Call, Hyperparameters, Sample
from babylon_tasks.settings import Settings
from babylon_tasks.settings.overrides import OVERRIDABLE
from babylon_tasks.training.recipe import (
    digest_of,
    hyperparameters_in_force,
    settings_in_force,
    this_machine,
)
from babylon_tasks.training.replay import recorded_hyperparameters

USUAL_WINDOWS = 40  # a million tokens, at 25,000 each
LARGEST_USUAL_RECIPE = 10_000  # bytes


def make_recipe(count: int = 1, **changes: Any) -> Recipe:
    recipe = Recipe(
        lineage="babylon-agent",
        overrides=["LEARNING_RATE"],
        base_model="Qwen/Qwen2.5-0.5B-Instruct",
        base_revision="7ae557604adf67be50417f59c2c2f167def9a775",
        parent=ParentStep("babylon-agent", 11),
        seed=12,
        trainer="torch",
        settings=settings_in_force(Settings(base_model="none")),
        windows=[
            WindowRecipe(
                f"2025-01-{n // 24 + 1:02}T{n % 24:02}:00", 1, "ruler", 120, "0123456789abcdef",
                "openai/gpt-4o-mini", "0123456789abcdef",
            )
            for n in range(count)
        ],
        samples=SamplesRecipe("0" * 64, 480, 4800, 0),
        device="NVIDIA H100 80GB HBM3",
        packages=dict.fromkeys(("babylon-tasks", "openpipe-art", "peft", "torch"), "2.8.0+cu128"),
        machine=this_machine(),
    )  # fmt: skip
    return msgspec.structs.replace(recipe, **changes)


def test_a_usual_recipe_is_small_and_comes_back_whole() -> None:
    recipe = make_recipe(USUAL_WINDOWS)
    text = json.dumps(msgspec.to_builtins(recipe))
    assert len(text) < LARGEST_USUAL_RECIPE
    assert read_recipe(json.loads(text)) == recipe


def test_recipes_of_other_releases() -> None:
    assert read_recipe({}) is None
    row = msgspec.to_builtins(make_recipe())
    assert read_recipe({**row, "gate": "a newer release's"}) == make_recipe()
    del row["windows"]
    with pytest.raises(UserError, match=r"missing required field `windows`\): upgrade this one"):
        read_recipe(row)


def test_all_settings_of_a_lineage_are_in_it_and_no_secret() -> None:
    settings = Settings(
        base_model="none",
        learning_rate=3e-5,
        max_staleness=None,
        judge_api_key=SecretStr("hidden"),
        judge_base_url="https://user:hidden@judge:8443/v1?key=hidden#hidden",
        logprobs_url="http://host/v1",
        judge_rubric="/srv/what?.txt",
    )
    values = settings_in_force(settings)
    assert values.keys() == {name.upper() for name in OVERRIDABLE}
    assert {name.upper() for name in Hyperparameters.__struct_fields__} < values.keys()
    assert (values["LEARNING_RATE"], values["MAX_STALENESS"]) == (3e-5, None)
    assert values["JUDGE_BASE_URL"] == "https://judge:8443/v1"
    assert values["LOGPROBS_URL"] == "http://host/v1"
    assert values["JUDGE_RUBRIC"] == "/srv/what?.txt"
    assert "hidden" not in json.dumps(values)


def test_a_step_is_told_the_settings_in_force() -> None:
    settings = Settings(
        base_model="none", passes=2, windows_per_update=3, ratio_cap=4.5, unrecorded_ratio="parent",
        kl_reference="parent", group_deviation=False, kl_penalty=0.1, max_policy_change=0.5,
    )  # fmt: skip
    told = hyperparameters_in_force(settings)
    assert told == Hyperparameters(
        None, 5, 8, 16, 0.1, 0.3, 4096, 16_384, 2, 3, 4.5, "parent", "parent", False, 0.5
    )


def test_a_recipe_of_before_is_made_again_as_it_was() -> None:
    """The step had one update, ratios up to 5, and a ratio of 1 where nothing was recorded."""
    later = {
        "PASSES", "WINDOWS_PER_UPDATE", "RATIO_CAP", "UNRECORDED_RATIO", "KL_REFERENCE",
        "GROUP_DEVIATION", "MAX_POLICY_CHANGE",
    }  # fmt: skip
    now = settings_in_force(Settings(base_model="none", learning_rate=1e-5, kl_penalty=0.1))
    assert later < now.keys()
    then = {name: value for name, value in now.items() if name not in later}
    wanted = recorded_hyperparameters(make_recipe(settings=then), "step 1")
    assert wanted == Hyperparameters(
        1e-5, 5, 8, 16, 0.1, 0.3, 4096, 16_384, 1, 0, 5.0, "one", "base", True, None
    )
    again = recorded_hyperparameters(make_recipe(settings={**now, "PASSES": 3}), "step 1")
    assert (again.passes, again.ratio_cap, again.unrecorded_ratio) == (3, 1.0, "base")
    for wrong in ({**now, "KL_REFERENCE": "someone"}, {**now, "LORA_RANK": None}):
        with pytest.raises(UserError, match="step 1 cannot be made again by this release"):
            recorded_hyperparameters(make_recipe(settings=wrong), "step 1")
    del then["LORA_RANK"]
    with pytest.raises(UserError, match="missing required field `lora_rank`"):
        recorded_hyperparameters(make_recipe(settings=then), "step 1")


def test_the_digest_of_samples(tmp_path: Path) -> None:
    lines = [
        msgspec.json.encode(Sample(window, "t", 0.5, [Call("s", window, answer)])) + b"\n"
        for window, answer in (("w1", "a"), ("w1", "b"), ("w0", "c"))
    ]
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(lines))
    digest = digest_of(path)
    assert digest.sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    assert digest.windows == {
        "w1": hashlib.sha256(lines[0] + lines[1]).hexdigest()[:16],
        "w0": hashlib.sha256(lines[2]).hexdigest()[:16],
    }


def test_what_two_recipes_differ_in() -> None:
    a = make_recipe(2)
    b = make_recipe(
        3,
        seed=13,
        lineage="other",
        settings={**a.settings, "KL_PENALTY": 0.5},
        packages={"torch": "2.9.0"},
        windows=[WindowRecipe("2025-01-01T00:00", 1, "heuristic", 9, "00"), *a.windows],
    )
    assert differences(a.to_compare(), b.to_compare()) == {
        "scored_by": (
            "ruler openai/gpt-4o-mini 0123456789abcdef",
            "heuristic, ruler openai/gpt-4o-mini 0123456789abcdef",
        ),
        "KL_PENALTY": (0.0, 0.5),
        "babylon-tasks": ("2.8.0+cu128", None),
        "openpipe-art": ("2.8.0+cu128", None),
        "peft": ("2.8.0+cu128", None),
        "torch": ("2.8.0+cu128", "2.9.0"),
    }
