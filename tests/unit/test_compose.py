"""compose.yaml: nothing is open to the network, and every command exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from celery.bin.celery import celery as celery_command

from babylon_tasks.cli import babylon
from babylon_tasks.settings import Settings
from workers.serve.vllm.process import Served

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
    "services"
]
OURS = sorted(
    name for name, service in SERVICES.items() if service["image"].startswith("babylon-tasks:")
)

every_service = pytest.mark.parametrize("name", sorted(SERVICES))
each_of_ours = pytest.mark.parametrize("name", OURS)


def test_the_roles_are_there() -> None:
    assert OURS == ["beat", "cpu", "flower", "gpu", "migrate", "serve"]


@every_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    assert service.get("network_mode") is None
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@every_service
def test_restart_and_time_to_stop_are_set(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert re.fullmatch(r"\d+[sm]", service["stop_grace_period"])
    assert service["logging"]["options"]["max-size"]


def test_redis_demands_a_password_and_hides_it() -> None:
    redis = SERVICES["redis"]
    assert "requirepass $$REDISCLI_AUTH\n" in redis["command"][-1]
    assert redis["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")
    assert "PASSWORD" not in str(redis["command"]) + str(redis["healthcheck"])
    for name in OURS:
        assert SERVICES[name]["environment"]["REDIS_URL"].startswith("redis://:${REDIS_PASSWORD:?")


@every_service
def test_who_publishes_a_port_demands_a_secret(name: str) -> None:
    """Its own, without which Compose does not start; not those that every service gets."""
    environment = SERVICES[name].get("environment", {})
    demanded = {
        variable
        for variable, value in environment.items()
        if str(value).startswith("${" + variable + ":?")
    }
    asked_for = {"flower": {"FLOWER_BASIC_AUTH"}, "serve": {"SERVE_API_KEY"}}
    assert asked_for.get(name, set()) <= demanded
    assert name in asked_for or not SERVICES[name].get("ports")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_workers_end_within_their_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["environment"]["REMAP_SIGTERM"] == "SIGQUIT"
    assert int(service["stop_grace_period"].removesuffix("s")) >= 40
    assert service["command"][:6] == ["celery", "-A", "babylon_tasks", "worker", "-Q", name]


@each_of_ours
def test_the_command_is_one_we_have(name: str) -> None:
    match SERVICES[name]["command"]:
        case ["babylon", command, *_]:
            assert command in babylon.list_commands(click.Context(babylon))
        case ["celery", "-A", "babylon_tasks", command, *_]:
            context = click.Context(celery_command)
            assert command in celery_command.list_commands(context)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case other:
            pytest.fail(f"{name}: {other}")


@each_of_ours
def test_the_image_is_a_target_of_the_dockerfile(name: str) -> None:
    service = SERVICES[name]
    target = service["build"]["target"]
    assert service["image"] == f"babylon-tasks:{target}"
    assert f" AS {target}\n" in (ROOT / "Dockerfile").read_text()
    assert name not in ("gpu", "serve") or target == "gpu"


@each_of_ours
def test_everything_waits_for_the_migrations(name: str) -> None:
    service = SERVICES[name]
    if name == "migrate":
        assert service["depends_on"] == {
            "postgres": {"condition": "service_healthy", "required": False}
        }
    else:
        assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_named_volumes_are_declared_and_writable() -> None:
    declared = set(yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"])
    dockerfile = (ROOT / "Dockerfile").read_text()
    used = set()
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            volume, folder, *_ = mount.split(":")
            used.add(volume)
            assert name not in OURS or f" {folder}" in dockerfile
    assert used == declared


def test_every_variable_is_in_the_example_file() -> None:
    names = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    example = (ROOT / ".env.example").read_text()
    of_others = {"PIP_EXTRA_INDEX_URL", "HF_TOKEN"}
    assert {n for n in names if f"#{n}=" not in example} == of_others


def test_vllm_sees_the_checkpoints_and_nobody_but_the_endpoint_sees_vllm() -> None:
    vllm, serve = SERVICES["vllm"], SERVICES["serve"]
    assert vllm["profiles"] == ["vllm"]
    assert "ports" not in vllm
    store = next(mount for mount in serve["volumes"] if mount.startswith("checkpoints:"))
    assert f"{store}:ro" in vllm["volumes"]
    pinned = re.search(r"^vllm==(\S+)", (ROOT / "constraints-vllm.txt").read_text(), re.M)
    assert pinned is not None
    assert vllm["image"].endswith(f":v{pinned[1]}")
    check_flags(vllm["command"])
    assert vllm["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def check_flags(command: list[str]) -> None:
    """The flags fit our defaults, and are those of the server that the endpoint starts itself."""
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in command if "=" in flag)
    adapters, rank = Settings().serve_adapters, Settings().lora_rank
    for flag in Served("x", None, rank, adapters).arguments()[3:]:
        assert flag in command or flag == "--enable-prefix-caching"  # vLLM's default
    assert flags["model"].endswith(f"{Settings().base_model}}}")
