"""Variables that other programs read; the documents list them beside our settings."""

from __future__ import annotations

from typing import NamedTuple


class OtherVariable(NamedTuple):
    """A variable with its readers and its one text.

    `example` is its value in `.env.example`; None: it is not in that file.
    """

    name: str
    readers: str
    text: str
    example: str | None = None


OTHER_VARIABLES = (
    OtherVariable(
        "REDIS_PASSWORD",
        "`compose.yaml`",
        "Password of Compose's Redis, required; `REDIS_URL` is built from it. Take letters and "
        "digits only: `openssl rand -hex 24`.",
        example="",
    ),
    OtherVariable(
        "FLOWER_BASIC_AUTH",
        "Flower, `compose.yaml`",
        "`user:password` of Flower's pages. Docker Compose requires it; elsewhere export it, "
        "since Flower reads no `.env`. Without it Flower stays on loopback.",
        example="",
    ),
    OtherVariable(
        "POSTGRES_PASSWORD",
        "`compose.yaml`",
        "Password of the database that `--profile standalone` starts. Take letters and digits "
        "only.",
        example="",
    ),
    OtherVariable(
        "REMAP_SIGTERM",
        "Celery",
        "`SIGQUIT` in `compose.yaml` and the systemd units: on SIGTERM, which `docker stop` sends, "
        "a worker waits 20 seconds for its tasks, then drops them and gives them back. Ours do so "
        "without it as well.",
        example="SIGQUIT",
    ),
    OtherVariable(
        "CUDA_VISIBLE_DEVICES",
        "GPU workers",
        "The GPUs to use, one pool process each; all of them without it. Numbers as `nvidia-smi` "
        "counts, UUIDs, MIG ids.",
    ),
    OtherVariable("HF_HOME", "Hugging Face", "Cache folder for a `BASE_MODEL` from the hub."),
    OtherVariable(
        "HF_TOKEN", "Hugging Face", "Token for a `BASE_MODEL` that the hub does not give to all."
    ),
    OtherVariable(
        "WANDB_DIR", "wandb", "Where `wandb/` with its files is made; `.babylon` without it."
    ),
    OtherVariable(
        "AWS_…",
        "s3fs",
        "Server and credentials for `CHECKPOINT_STORE=s3://…`; see [Checkpoints](#checkpoints).",
    ),
    OtherVariable(
        "PIP_EXTRA_INDEX_URL",
        "pip",
        "An index with other builds of a package. `torch` from the default index brings its CUDA "
        "libraries on Linux; a machine without a GPU can name an index with CPU builds before "
        "`make venv` or `docker compose build`.",
    ),
)
