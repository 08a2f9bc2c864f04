"""deploy/systemd: the commands of docs/deploying.md and compose.yaml, and time enough to stop."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
ROLES = ["beat", "cpu", "flower", "gpu", "serve"]
BIN = "/opt/babylon-tasks/bin/"
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
WORKERS = ["cpu", "gpu"]
WITH_GPU = ["gpu"]

each_unit = pytest.mark.parametrize("role", ROLES)


def options(role: str) -> dict[str, list[str]]:
    """All values of each option of a unit, in their order."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / f"babylon-{role}.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def command(role: str) -> list[str]:
    """What the unit runs, as the shell would be told."""
    (line,) = options(role)["ExecStart"]
    assert line.startswith(BIN)
    return shlex.split(line.removeprefix(BIN).replace("%%", "%"))


def environment(role: str) -> dict[str, str]:
    pairs = [pair for line in options(role)["Environment"] for pair in line.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def documented_commands() -> list[list[str]]:
    text = (ROOT / "docs" / "deploying.md").read_text()
    table = text.partition("\n## Several machines\n")[2]
    return [shlex.split(c) for c in re.findall(r"^\| [^|]+ \| `([^`]+)` \|", table, re.M)[:5]]


def test_the_roles_are_there() -> None:
    assert [unit.stem for unit in UNITS] == [f"babylon-{role}" for role in (*ROLES, "vllm")]
    install = (FOLDER / "README.md").read_text()
    assert all(unit.stem in install for unit in UNITS)


def test_vllm_runs_as_in_compose_without_the_passwords_of_others() -> None:
    unit = options("vllm")
    text = (FOLDER / "babylon-vllm.service").read_text().replace("\\\n", "")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    python, *arguments = shlex.split(line)
    assert python == "/opt/babylon-vllm/bin/python"
    assert arguments[:4] == ["-P", "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1"]
    theirs = [flag for flag in SERVICES["vllm"]["command"] if not flag.startswith("--model")]
    assert set(theirs) | {"--model=${BASE_MODEL}"} == set(arguments[4:])
    assert unit["EnvironmentFile"] == ["/etc/babylon-vllm.env"]
    assert environment("vllm")["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    for shared in ("User", "StateDirectory", "ProtectSystem", "PrivateTmp", "ReadWritePaths"):
        assert unit[shared] == options("serve")[shared]  # the checkpoints, and copies of them
    assert unit["Restart"] == ["always"]
    assert "PrivateDevices" not in unit  # or it would see no GPU


@each_unit
def test_the_command_is_the_documented_one(role: str) -> None:
    ours = command(role)
    assert [c for c in documented_commands() if ours[: len(c)] == c]


@each_unit
def test_the_command_is_composes(role: str) -> None:
    # In a container 0.0.0.0 is behind a published port on loopback.
    theirs = ["127.0.0.1" if a == "0.0.0.0" else a for a in SERVICES[role]["command"]]
    assert command(role) == theirs


@each_unit
def test_it_is_started_again_until_a_person_must_act(role: str) -> None:
    unit = options(role)
    assert unit["Restart"] == ["always"]
    assert float(unit["RestartSec"][0]) >= 1
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert "network-online.target" in unit["After"][0].split()
    assert unit["Wants"] == ["network-online.target"]


@each_unit
def test_it_ends_within_its_time_to_stop(role: str) -> None:
    unit = options(role)
    assert unit["KillMode"] == ["mixed"]
    grace = SERVICES[role]["stop_grace_period"]
    assert f"{unit['TimeoutStopSec'][0]}s" == grace


@pytest.mark.parametrize("role", WORKERS)
def test_a_worker_has_time_to_drop_its_tasks(role: str) -> None:
    configured = (ROOT / "babylon_tasks" / "celery.py").read_text()
    (soft,) = re.findall(r"worker_soft_shutdown_timeout=([\d.]+)", configured)
    assert float(options(role)["TimeoutStopSec"][0]) >= 2 * float(soft)
    remap = SERVICES[role].get("environment", {}).get("REMAP_SIGTERM")
    assert environment(role).get("REMAP_SIGTERM") == remap
    assert options(role)["OOMPolicy"] == ["continue"]


@each_unit
def test_secrets_come_from_a_file_of_root(role: str) -> None:
    assert options(role)["EnvironmentFile"] == ["/etc/babylon-tasks.env"]
    assert set(environment(role)) <= {"HOME", "PYTHONUNBUFFERED", "REMAP_SIGTERM"}
    text = (FOLDER / f"babylon-{role}.service").read_text()
    assert not re.search(r"\w+://\w*:|(PASSWORD|TOKEN|SECRET|KEY|AUTH|URL)=", text)


@each_unit
def test_a_role_may_write_its_own_folder_only(role: str) -> None:
    unit = options(role)
    assert unit["User"] == ["babylon"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["StateDirectory"] == ["babylon-tasks"]
    assert unit["WorkingDirectory"] == ["%S/babylon-tasks"]  # a relative CHECKPOINT_STORE's root
    # The lock of a GPU is a file in /tmp, for every process of the machine to see.
    own_tmp = role not in ("gpu", "serve")
    assert unit["PrivateTmp"] == ["yes" if own_tmp else "no"]
    assert ("/tmp" in unit.get("ReadWritePaths", [""])[0].split()) != own_tmp
    assert ("PrivateDevices" in unit) != (role in WITH_GPU)
    assert "MemoryDenyWriteExecute" not in unit  # torch compiles


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    for unit in UNITS:
        text = re.sub(r"/opt/babylon-\w+/bin/\w+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
