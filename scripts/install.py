"""Make .venv, or add to it: `python3 scripts/install.py demo` or `dev`.

constraints.txt names every package with its exact version: `demo` installs its first part, `dev`
all of it. pip then has nothing to resolve, and for the demo Python compiles only what is imported.
That takes a third of the time. uv, where it is installed, takes a tenth; it does not read pip's
settings, so torch, which may come from a folder or an index that these name, is pip's in any case.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
CONSTRAINTS = ROOT / "constraints.txt"
NOT_IN_DEMO = "# Not in the demo"


def main() -> None:
    """Install the set that the command line names."""
    wanted = sys.argv[1]
    if not PYTHON.exists() or subprocess.run([*PIP, "--version"], capture_output=True).returncode:
        print("making .venv", flush=True)
        venv.create(ROOT / ".venv", with_pip=True)
    text = CONSTRAINTS.read_text()
    names = re.findall(
        r"^[\w.-]+==\S+", text.partition(NOT_IN_DEMO)[0] if wanted == "demo" else text, re.M
    )
    torch = next(name for name in names if name.startswith("torch=="))
    print(f"installing {len(names)} packages below .venv; torch is the largest", flush=True)
    # With what it depends on, since CUDA's libraries are listed nowhere.
    run([*PIP, "install", "--no-compile", "-c", str(CONSTRAINTS), torch])
    exact = [name for name in names if name != torch]
    if not (uv_sees_what_pip_sees() and uv_install(exact)):
        pip_install(exact)
    ours = ["--no-deps", "-e", str(ROOT)]
    if wanted == "dev":  # another system may need more than is listed
        ours = ["-c", str(CONSTRAINTS), "-e", f"{ROOT}[train,embedded,dev]"]
    run([*PIP, "install", "-q", "--no-build-isolation", *ours])
    if wanted == "dev":  # on all cores, once: tests start hundreds of processes
        print("compiling them", flush=True)
        packages = ROOT / ".venv/lib"
        subprocess.run([PYTHON, "-m", "compileall", "-q", "-j", "0", packages], capture_output=True)


def uv_sees_what_pip_sees() -> bool:
    """Whether uv is installed and pip's settings do not send it to another index."""
    if not shutil.which("uv"):
        return False
    settings = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    return not re.search(r"\.(index-url|no-index)=", settings)


def uv_install(exact: list[str]) -> bool:
    """Install these versions by uv; False where it cannot, and pip is to try."""
    arguments = ["uv", "pip", "install", "--python", str(PYTHON), "--no-deps", *exact]
    return subprocess.run(arguments).returncode == 0


def pip_install(exact: list[str]) -> None:
    """Install these versions by pip, and print a line for each."""
    arguments = [*PIP, "install", "--no-compile", "--no-deps", "--progress-bar", "off", *exact]
    lines, done = [], 0
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            name = re.match(r"(?:Collecting|Processing|Requirement already satisfied:) (\S+)", line)
            if name:
                done += 1
                print(f"{done:4}/{len(exact)}  {Path(name[1]).name}", flush=True)
            elif line.startswith("Installing collected packages"):
                print("unpacking them", flush=True)
    if process.returncode:
        sys.exit("".join(lines) + "pip failed")


def run(arguments: list[str]) -> None:
    """Run a program that shows its own progress, and end with its code where it fails."""
    code = subprocess.run(arguments).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
