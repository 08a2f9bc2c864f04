"""Settings: the endpoint that answers the agents."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator

from babylon_tasks.settings.group import DAY, INT32, Group, listed


class Serving(Group):
    """Serving.

    [serving.md](serving.md) says how the endpoint is run and sized.
    """

    serve_api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="A key that the endpoint accepts, 16 characters or more (`openssl rand -hex "
        "24`), beside those of `babylon keys`. Clients send it as OpenAI's do: `Authorization: "
        "Bearer`. Without any key the endpoint listens on loopback only. Docker Compose requires "
        "it.",
    )
    vllm_urls: str | None = Field(
        None,
        description="vLLM servers that answer, separated by commas: "
        "`http://gpu1:8001,http://gpu2:8001`. Each has the lineages' base model, LoRA, and "
        "`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`. Without this and `VLLM_PYTHON` the endpoint "
        "generates by itself, with transformers.",
    )
    vllm_api_key: SecretStr | None = Field(
        None, description="Key of these vLLM servers, if they ask for one."
    )
    vllm_python: str | None = Field(
        None,
        description="Python of an environment that has vLLM: the endpoint starts one vLLM server "
        "with it, and starts it again when it ends.",
    )
    vllm_arguments: str = Field(
        "",
        description="More arguments for that server, as in a shell: `--tensor-parallel-size 2`.",
    )
    serve_adapters: int = Field(
        4,
        ge=3,
        le=64,
        description="Adapters that a backend keeps loaded at once: what is promoted, a share, what "
        "was promoted before, and one to load. vLLM needs `--max-loras` of at least as many.",
    )
    serve_requests: int = Field(
        256,
        ge=1,
        le=INT32,
        description="Requests answered at once; more get 503 with `Retry-After`.",
    )
    serve_seconds: float = Field(
        300, gt=0, le=DAY, description="Seconds after which an answer is given up."
    )
    capture_calls: bool = Field(
        True,
        description="`true`: the endpoint remembers tokens, log-probabilities and version of each "
        "answer in `rl.calls`, for training. It stores no text.",
    )
    capture_days: float = Field(
        7, gt=0, le=3650, description="Days after which a remembered answer is deleted."
    )
    capture_rows: int = Field(
        5_000_000,
        ge=1,
        le=10**12,
        description="Answers remembered at most; the oldest are deleted first.",
    )

    def vllm_servers(self) -> list[str]:
        """Return the base URLs of VLLM_URLS, without `/v1`."""
        urls = listed(self.vllm_urls or "")
        return [url.rstrip("/").removesuffix("/v1") for url in urls]

    @model_validator(mode="after")
    def _one_source_of_vllm(self) -> Self:
        if self.vllm_urls and self.vllm_python:
            raise ValueError("VLLM_URLS and VLLM_PYTHON exclude each other: unset one of them")
        servers = self.vllm_servers()
        named = all(url.startswith(("http://", "https://")) for url in servers)
        if not named or (self.vllm_urls and not servers):
            raise ValueError("VLLM_URLS: each is a URL such as http://host:8001")
        return self
