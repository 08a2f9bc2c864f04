"""The one place that calls ART: its `ruler()`, and what that does not hand out.

ART and litellm are imported with the first call: they take seconds and hundreds of megabytes.
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
_TALKATIVE = (
    "LiteLLM",
    "LiteLLM Router",
    "LiteLLM Proxy",
    "openai",
    "httpx",
    "httpcore",
    "aiohttp",
)

# The response of the call in this task; ruler() gives only parsed scores, or an error.
_received: ContextVar[list[Any]] = ContextVar("received")


class Busy(Exception):
    """The judge did not answer this time; `wait_seconds` is what it asked for, or None.

    `limited` is whether it has too much to do, whatever it is asked.
    """

    def __init__(
        self, message: str, wait_seconds: float | None = None, *, limited: bool = False
    ) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.limited = limited


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars a token."""

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
    """Refuse to judge without a provider or a key, which litellm would take for the judge's fault.

    Raises:
        UserError: One is missing; the message names the variables.
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
            del os.environ[name]  # litellm takes an empty one for a key
    missing = litellm.validate_environment(_model(settings))["missing_keys"]
    if missing:
        raise UserError(
            f"no key for the judge {settings.judge_model}: set JUDGE_API_KEY or "
            f"{' and '.join(missing)}, or JUDGE_BASE_URL for a judge without one"
        )


def no_price(settings: Settings) -> str:
    """Return what a daily limit needs and lacks."""
    return (
        f"JUDGE_DAILY_USD is set, but nobody knows what {settings.judge_model} costs: set "
        "JUDGE_INPUT_USD_PER_MILLION and JUDGE_OUTPUT_USD_PER_MILLION"
    )


def price(settings: Settings) -> Price | None:
    """Return what the judge costs, by setting or by litellm's list; None where neither knows."""
    if (
        settings.judge_input_usd_per_million is not None
        and settings.judge_output_usd_per_million is not None
    ):
        return Price(
            settings.judge_input_usd_per_million / 1e6, settings.judge_output_usd_per_million / 1e6
        )
    litellm, _ = load()
    try:
        known = litellm.get_model_info(_model(settings))
    except Exception:  # noqa: BLE001 - litellm raises a plain Exception for a model it does not list
        return None
    if not known.get("input_cost_per_token") and not known.get("output_cost_per_token"):
        return None  # listed without a price
    return Price(known["input_cost_per_token"] or 0.0, known["output_cost_per_token"] or 0.0)


async def ask_ruler(
    texts: Sequence[str],
    context: str,
    rubric: str,
    settings: Settings,
    per_token: Price | None,
    max_tokens: int,
) -> Answer:
    """Ask once about the texts, which the judge sees as trajectories "1", "2" and so on.

    The answer is cut off after `max_tokens`.

    Raises:
        Busy: No answer: a rate limit, a server's fault, a timeout, a connection cut off.
        JudgeFault: The prompt is longer than the judge takes, or says what it does not read.
        JudgeUnavailable: It refuses to be asked at all (key, model, request).
    """
    litellm, ruler = load()
    received: list[Any] = []
    _received.set(received)
    shared = {"role": "system", "content": context}
    entries: list[Entry] | None = None
    try:
        # litellm's own timeout is for each silence, and an answer may come a byte at a time.
        async with asyncio.timeout(settings.judge_timeout_seconds):
            scores = await ruler(
                [[shared, {"role": "user", "content": text}] for text in texts],
                judge_model=_model(settings),
                extra_litellm_params={**_parameters(settings), "max_tokens": max_tokens},
                rubric=rubric,
            )
        entries = [Entry(s.trajectory_id.strip(), s.score, s.explanation) for s in scores]
    except ValueError:
        # A wrong number of scores, prose around the JSON, …: what it said is looked at below.
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
    """Say what an error of litellm means. Its classes go by words; the status says more."""
    status = getattr(error, "status_code", None)
    said = f"{type(error).__name__} {error} {_codes(error)}".lower()
    where = f" at {urlsplit(settings.judge_base_url).netloc}" if settings.judge_base_url else ""
    why = _redacted(f"{settings.judge_model}{where} ({type(error).__name__}): {error}", settings)
    if status in (401, 402, 403, 404, 405) or any(words in said for words in _MISNAMED):
        return JudgeUnavailable(
            f"{why}: check JUDGE_MODEL, JUDGE_BASE_URL, the judge's key and its account"
        )
    if status in (400, 413, 422):
        # It is about this question: others may well be answered.
        lower = f": lower JUDGE_CONTEXT_TOKENS (now {settings.judge_context_tokens})"
        return JudgeFault(why + (lower if any(words in said for words in _TOO_LONG) else ""))
    return Busy(why, _retry_after(error), limited=status in (429, 503, 529))


def _codes(error: BaseException | None) -> str:
    """Return the provider's own words for what is wrong, which litellm's message leaves out."""
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
    """Import litellm and ART's `ruler`, kept quiet, with our receipts.

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
            """Awaited in the caller's own task, before ruler() reads the answer."""
            kept = _received.get(None)
            if kept is not None:
                kept.append(response)

    litellm.callbacks.append(Receipts())
    litellm.suppress_debug_info = True
    # It serializes with the types of one version of its SDK what came with those of another.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return litellm, ruler


def _model(settings: Settings) -> str:
    """Name a provider, which litellm needs; an address of one's own speaks OpenAI's protocol."""
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
        "max_retries": 0,  # we count, and wait as the judge asks for
        "num_retries": 0,
    }
    if settings.judge_base_url:
        parameters["api_base"] = settings.judge_base_url
        # Without this one, the key of OPENAI_API_KEY would go to that address.
        parameters["api_key"] = "none"
    if settings.judge_api_key:
        parameters["api_key"] = settings.judge_api_key.get_secret_value()
    return parameters


def _retry_after(error: Any) -> float | None:
    headers = getattr(error, "litellm_response_headers", None) or {}
    told = str(headers.get("retry-after", "")).strip()
    try:
        wait = float(told)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(wait, 0.0), 86_400.0) if math.isfinite(wait) else None


def _redacted(text: str, settings: Settings) -> str:
    """One line, without the key that some servers repeat."""
    keys = [settings.judge_api_key.get_secret_value()] if settings.judge_api_key else []
    keys += [value for name, value in os.environ.items() if name.endswith("_API_KEY") and value]
    for key in keys:
        text = text.replace(key, "…")
    return one_line(text, 300)
