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
            volume, folder = mount.split(":")
            used.add(volume)
            assert name not in OURS or f" {folder}" in dockerfile
    assert used == declared


def test_every_variable_is_in_the_example_file() -> None:
    names = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    example = (ROOT / ".env.example").read_text()
    assert {n for n in names if f"#{n}=" not in example} == {"PIP_EXTRA_INDEX_URL"}
