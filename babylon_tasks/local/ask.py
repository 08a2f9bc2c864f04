"""One question to a served model, over the OpenAI-compatible endpoint that the app would use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from pydantic import SecretStr

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.settings import load_settings

_FOLLOW_SECONDS = 60.0
_LOOK_SECONDS = 0.05

QUESTION = (
    {"role": "system", "content": "You are a trading agent."},
    {"role": "user", "content": "Balance: $10000, P&L: $0. Should I buy BTC or wait?"},
)


@contextmanager
def starting(env: Mapping[str, str], log: Path | None = None) -> Iterator[Callable[[], str]]:
    """Run the endpoint on a free port of loopback; yield what waits for its base URL.

    What is yielded raises ServerUnavailable if it did not start; its own message is in `log`, or
    without that on standard error.
    """
    with contextlib.nullcontext() if log is None else log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.serve", "--host", "127.0.0.1", "--port", "0"],
            env={**os.environ, "TQDM_DISABLE": "1", **env},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=end_with_parent,
        )
    stdout = process.stdout
    assert stdout is not None

    def wait() -> str:
        for line in stdout:
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
        raise ServerUnavailable(f"the endpoint ended with code {process.wait()}")

    try:
        yield wait
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def serving(env: Mapping[str, str]) -> Iterator[str]:
    """Run our endpoint on a free port of loopback, and yield its base URL.

    Raises:
        ServerUnavailable: It did not start; its own message is on standard error.
    """
    with starting(env) as wait:
        yield wait()


def wait_until_served(base_url: str, lineage: str, step: int) -> None:
    """Wait until a lineage's name answers with this step; our server follows within seconds.

    Raises:
        ServerUnavailable: It does not come to that, or does not answer.
    """
    ends_at = time.monotonic() + _FOLLOW_SECONDS
    while True:
        try:
            health = httpx.get(f"{base_url}/health/ready", timeout=_FOLLOW_SECONDS).json()["health"]
            if health["promoted"].get(lineage) == step:
                return
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ServerUnavailable(f"the model server does not tell its state: {error}") from error
        if time.monotonic() > ends_at:
            raise ServerUnavailable(f"the model server does not come to serve {lineage}@{step}")
        time.sleep(_LOOK_SECONDS)


def ask(base_url: str, model: str, messages: tuple[dict[str, str], ...] = QUESTION) -> str:
    """Ask a model on our own server, with our SERVE_API_KEY, and return its answer.

    Raises:
        ServerUnavailable: The server refused or did not answer.
    """
    return _complete(f"{base_url}/v1", load_settings().serve_api_key, model, messages)


def ask_wandb(model: str, messages: tuple[dict[str, str], ...] = QUESTION) -> str:
    """Ask a model that W&B trained at W&B's own endpoint, and return its answer.

    Args:
        model: The model's inference name at W&B.
        messages: Chat messages of `role` and `content`.

    Raises:
        UserError: WANDB_API_KEY is not set.
        ServerUnavailable: W&B refused or did not answer.
    """
    settings = load_settings()
    if settings.wandb_api_key is None:
        raise UserError(f"{model} is served by W&B: set WANDB_API_KEY to ask it")
    return _complete(settings.serverless_url, settings.wandb_api_key, model, messages)


def _complete(
    url: str, key: SecretStr | None, model: str, messages: tuple[dict[str, str], ...]
) -> str:
    try:
        response = httpx.post(
            f"{url.rstrip('/')}/chat/completions",
            headers={b"Authorization": b"Bearer " + key.get_secret_value().encode()} if key else {},
            json={"model": model, "messages": list(messages), "max_tokens": 50},
            timeout=300,
        )
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])
    except httpx.HTTPError as error:
        raise ServerUnavailable(f"the endpoint did not answer: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ServerUnavailable(f"the endpoint's answer cannot be read: {error}") from error
