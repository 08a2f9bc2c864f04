"""The only call of ART: its `ruler()`, and the raw response that it does not return.

The first call imports ART and litellm: they take seconds and hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from babylon_tasks.errors import JudgeFault, JudgeUnavailable, UserError
from babylon_tasks.scoring.judge.answer import Answer, Entry, find_entries
from babylon_tasks.settings import Settings
from babylon_tasks.text import one_line

_TOO_LONG = ("context", "too long", "too large", "maximum model length", "maximum length")
_MISNAMED = (
    "insufficient_quota",
    "provider not provided",
    "model_not_found",
    "model not found",
    "unknown model",
    "invalid model",
)

# At DEBUG they log prompts and keys, at INFO a line for every call.
_VERBOSE_LOGGERS = (
    "LiteLLM",
    "LiteLLM Router",
    "LiteLLM Proxy",
    "openai",
    "httpx",
    "httpcore",
    "aiohttp",
)

# The raw response to this task's call; ruler() returns only parsed scores, or raises.
_received: ContextVar[list[Any]] = ContextVar("received")


class Busy(Exception):
    """The judge did not answer this time; `wait_seconds` is the wait that it demands, or None.

    `limited`: it is overloaded, whatever the question.
    """

    def __init__(
        self, message: str, wait_seconds: float | None = None, *, limited: bool = False
    ) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.limited = limited


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for one token of the input, and of the output."""

    input: float
    output: float


def require_installed() -> None:
    """Refuse to judge without ART.

    Raises:
        UserError: It is missing; the message names the extra.
    """
    if importlib.util.find_spec("art") is None:
        raise UserError("a judge is asked through ART: pip install 'babylon-tasks[judge]'")


def require_key(settings: Settings) -> None:
    """Refuse to judge without a provider or a key: litellm would blame the judge for it.

    Raises:
        UserError: One is missing (the message names the variables), or ART is.
    """
    litellm, _ = load()
    if not settings.judge_base_url:
        try:
            litellm.get_llm_provider(settings.judge_model)
        except litellm.exceptions.BadRequestError:
            raise UserError(
                f"JUDGE_MODEL={settings.judge_model} names no provider that litellm knows: write "
                "provider/model, or set JUDGE_BASE_URL"
            ) from None
    if settings.judge_base_url or settings.judge_api_key:
        return
    for name, value in list(os.environ.items()):
        if name.endswith("_API_KEY") and not value:
            del os.environ[name]  # litellm would use the empty value as a key
    missing = litellm.validate_environment(_model(settings))["missing_keys"]
    if missing:
        raise UserError(
            f"no key for the judge {settings.judge_model}: set JUDGE_API_KEY or "
            f"{' and '.join(missing)}, or JUDGE_BASE_URL for a judge without one"
        )


def no_price(settings: Settings) -> str:
    """Return the message that a daily limit needs a price."""
    return (
        f"JUDGE_DAILY_USD is set, but nobody knows what {settings.judge_model} costs: set "
        "JUDGE_INPUT_USD_PER_MILLION and JUDGE_OUTPUT_USD_PER_MILLION"
    )


def price(settings: Settings) -> Price | None:
    """Return the judge's price, from the settings or litellm's list; None if neither has it.

    Raises:
        UserError: ART is missing.
    """
    if (
        settings.judge_input_usd_per_million is not None
        and settings.judge_output_usd_per_million is not None
    ):
        return Price(
            settings.judge_input_usd_per_million / 1e6, settings.judge_output_usd_per_million / 1e6
        )
    litellm, _ = load()
    try:
        info = litellm.get_model_info(_model(settings))
    except Exception:  # noqa: BLE001 - litellm raises a plain Exception for a model it does not list
        return None
    if not info.get("input_cost_per_token") and not info.get("output_cost_per_token"):
        return None  # listed without a price
    return Price(info["input_cost_per_token"] or 0.0, info["output_cost_per_token"] or 0.0)


async def ask_ruler(
    texts: Sequence[str],
    context: str,
    rubric: str,
    settings: Settings,
    per_token: Price | None,
    max_tokens: int,
) -> Answer:
    """Ask once about the texts; the judge sees them as trajectories "1", "2" and so on.

    The answer is cut off after `max_tokens`.

    Raises:
        Busy: No answer: a rate limit, a server's fault, a timeout, a connection cut off.
        JudgeFault: The judge refuses this prompt, for instance because it is too long.
        JudgeUnavailable: The judge refuses every question (key, model, address, account).
        UserError: ART is missing.
    """
    litellm, ruler = load()
    received: list[Any] = []
    _received.set(received)
    shared = {"role": "system", "content": context}
    entries: list[Entry] | None = None
    try:
        # litellm's own timeout starts again with each byte, so a slow answer would never reach it.
        async with asyncio.timeout(settings.judge_timeout_seconds):
            scores = await ruler(
                [[shared, {"role": "user", "content": text}] for text in texts],
                judge_model=_model(settings),
                extra_litellm_params={**_parameters(settings), "max_tokens": max_tokens},
                rubric=rubric,
            )
        entries = [Entry(s.trajectory_id.strip(), s.score, s.explanation) for s in scores]
    except ValueError:
        # A wrong number of scores, prose around the JSON, …: the raw answer is read below.
        pass
    except TimeoutError:
        raise Busy(f"{settings.judge_model} took too long (JUDGE_TIMEOUT_SECONDS)") from None
    except litellm.exceptions.openai.APIError as error:
        # `from None`: the chained errors hold the request, with its key.
        raise _refusal(error, settings) from None
    if not received:
        raise Busy(f"{settings.judge_model} sent an answer of no known form")
    response = received[-1]
    choice = response.choices[0] if response.choices else None
    content = (choice.message.content if choice else None) or ""
    usage = getattr(response, "usage", None)
    prompt_tokens = int(getattr(usage, "prompt_tokens", 0) or 0)
    completion_tokens = int(getattr(usage, "completion_tokens", 0) or 0)
    return Answer(
        entries=find_entries(content) if entries is None else entries,
        cut_off=choice is not None and choice.finish_reason == "length",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=(
            None
            if per_token is None
            else prompt_tokens * per_token.input + completion_tokens * per_token.output
        ),
    )


def _refusal(error: Any, settings: Settings) -> Exception:
    """Map litellm's error to one of ours, by its status and by words in its message."""
    status = getattr(error, "status_code", None)
    message = f"{type(error).__name__} {error} {_codes(error)}".lower()
    where = f" at {urlsplit(settings.judge_base_url).netloc}" if settings.judge_base_url else ""
    why = _redacted(f"{settings.judge_model}{where} ({type(error).__name__}): {error}", settings)
    if status in (401, 402, 403, 404, 405) or any(words in message for words in _MISNAMED):
        return JudgeUnavailable(
            f"{why}: check JUDGE_MODEL, JUDGE_BASE_URL, the judge's key and its account"
        )
    if status in (400, 413, 422):
        # Only this question is refused: the judge may answer others.
        lower = f": lower JUDGE_CONTEXT_TOKENS (now {settings.judge_context_tokens})"
        return JudgeFault(why + (lower if any(words in message for words in _TOO_LONG) else ""))
    return Busy(why, _retry_after(error), limited=status in (429, 503, 529))


def _codes(error: BaseException | None) -> str:
    """Return the provider's own error code and type, which litellm's message lacks."""
    for _ in range(5):
        if error is None:
            break
        body = getattr(error, "body", None)
        if isinstance(body, dict):
            return f"{body.get('code')} {body.get('type')}"
        error = error.__cause__ or error.__context__
    return ""


@functools.cache
def load() -> tuple[Any, Any]:
    """Import litellm and ART's `ruler`, make them log less, and record each raw response.

    Raises:
        UserError: ART is missing.
    """
    require_installed()
    os.environ.update(
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # no download at import
        LITELLM_MODE="PRODUCTION",  # both of them load .env otherwise
        PYTHON_DOTENV_DISABLED="1",
    )
    import litellm
    from art.rewards import ruler
    from litellm.integrations.custom_logger import CustomLogger

    class Receipts(CustomLogger):  # type: ignore[misc, unused-ignore]
        async def async_post_call_success_deployment_hook(
            self, request_data: Any, response: Any, call_type: Any
        ) -> None:
            """Record the response; called in the caller's own task, before ruler() reads it."""
            responses = _received.get(None)
            if responses is not None:
                responses.append(response)

    litellm.callbacks.append(Receipts())
    litellm.suppress_debug_info = True
    # litellm serializes objects of one SDK version with the types of another, which warns.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    return litellm, ruler


def _model(settings: Settings) -> str:
    """Return the model with a provider, which litellm needs: OpenAI's for JUDGE_BASE_URL."""
    if settings.judge_base_url and not _has_provider(settings.judge_model):
        return f"openai/{settings.judge_model}"
    return settings.judge_model


def _has_provider(model: str) -> bool:
    litellm, _ = load()
    return model.partition("/")[0] in {str(each.value) for each in litellm.provider_list}


def _parameters(settings: Settings) -> dict[str, object]:
    parameters: dict[str, object] = {
        "temperature": 0,
        "drop_params": True,  # a reasoning model takes no temperature
        "timeout": settings.judge_timeout_seconds,
        "max_retries": 0,  # we retry ourselves, and wait as the judge demands
        "num_retries": 0,
    }
    if settings.judge_base_url:
        parameters["api_base"] = settings.judge_base_url
        # Without it litellm would send OPENAI_API_KEY to that address.
        parameters["api_key"] = "none"
    if settings.judge_api_key:
        parameters["api_key"] = settings.judge_api_key.get_secret_value()
    return parameters


def _retry_after(error: Any) -> float | None:
    headers = getattr(error, "litellm_response_headers", None) or {}
    text = str(headers.get("retry-after", "")).strip()
    try:
        wait = float(text)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(wait, 0.0), 86_400.0) if math.isfinite(wait) else None


def _redacted(text: str, settings: Settings) -> str:
    """Return the text as one line, without keys: some servers repeat them."""
    keys = [settings.judge_api_key.get_secret_value()] if settings.judge_api_key else []
    keys += [value for name, value in os.environ.items() if name.endswith("_API_KEY") and value]
    for key in keys:
        text = text.replace(key, "…")
    return one_line(text, 300)
