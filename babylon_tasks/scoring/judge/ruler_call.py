"""The only call of ART: its `ruler()`, and the raw response that it does not return.

The first call imports ART and litellm: they take seconds and hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from babylon_tasks.errors import JudgeUnavailable, UserError
from babylon_tasks.scoring.judge.answer import Answer, Entry, find_entries, only_thought, to_share
from babylon_tasks.scoring.judge.dialect import dialect_of
from babylon_tasks.scoring.judge.refusal import CERTIFICATES, Busy, ParameterRefused, refusal_of
from babylon_tasks.scoring.judge.tokens import estimate_tokens
from babylon_tasks.scoring.judge.transport import asking, bare, translate
from babylon_tasks.settings import Settings
from babylon_tasks.text import one_line

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

# Providers of whom litellm wants this variable and no other.
_SIMPLE_KEYS = {
    "openai": "OPENAI_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
}

# The raw response to this task's call; ruler() returns only parsed scores, or raises.
_received: ContextVar[list[Any]] = ContextVar("received")


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
    require_simple_key(settings)  # before an import of seconds
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
        raise _no_key(settings, " and ".join(missing))


def require_simple_key(settings: Settings) -> None:
    """Refuse to judge without a key where one variable has it; imports nothing.

    Raises:
        UserError: It is missing; the message names the variable.
    """
    variable = _SIMPLE_KEYS.get(settings.judge_model.partition("/")[0])
    if variable is None or settings.judge_base_url or settings.judge_api_key:
        return
    if not os.environ.get(variable, "").strip():
        raise _no_key(settings, variable)


def _no_key(settings: Settings, variables: str) -> UserError:
    return UserError(
        f"no key for the judge {settings.judge_model}: set JUDGE_API_KEY or {variables}, or "
        "JUDGE_BASE_URL for a judge without one"
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

    A parameter that the judge refuses is left out, and it is asked again.

    Raises:
        Busy: No answer: a rate limit, a server's fault, a timeout, a connection cut off.
        Refused: A refusal that is about this question, or about all questions.
        JudgeFault: The judge refuses this prompt, because it is too long.
        JudgeUnavailable: The judge refuses every question (key, model, address, account).
        UserError: ART is missing.
    """
    dialect = dialect_of(settings)
    while True:
        question = _Question(texts, context, rubric, dialect.parameters(max_tokens), dialect.sent())
        try:
            return await _ask(question, settings, per_token)
        except ParameterRefused as error:
            dialect.leave_out(error.parameter, str(error))


@dataclass(frozen=True, slots=True)
class _Question:
    """What one request asks; `sent` names those of its parameters that a judge may refuse."""

    texts: Sequence[str]
    context: str
    rubric: str
    parameters: dict[str, object]
    sent: Sequence[str]


async def _ask(question: _Question, settings: Settings, per_token: Price | None) -> Answer:
    litellm, ruler = load()
    received: list[Any] = []
    _received.set(received)
    shared = {"role": "system", "content": question.context}
    entries: list[Entry] | None = None
    try:
        # litellm's own timeout starts again with each byte, so a slow answer would never reach it.
        async with asyncio.timeout(settings.judge_timeout_seconds):
            asking(settings)
            scores = await ruler(
                [[shared, {"role": "user", "content": text}] for text in question.texts],
                judge_model=_model(settings),
                extra_litellm_params={**_parameters(settings), **question.parameters},
                rubric=question.rubric,
            )
        entries = [Entry(s.trajectory_id.strip(), s.score, s.explanation) for s in scores]
    except ValueError:
        # A wrong number of scores, prose around the JSON, …: the raw answer is read below.
        pass
    except TimeoutError:
        raise Busy(f"{settings.judge_model} took too long (JUDGE_TIMEOUT_SECONDS)") from None
    except litellm.exceptions.openai.APIError as error:
        # `from None`: the chained errors hold the request, with its key.
        raise refusal_of(error, settings, question.sent) from None
    except OSError as error:  # before anything was sent
        raise JudgeUnavailable(
            f"{settings.judge_model} cannot be asked: {one_line(str(error))}; {CERTIFICATES}"
        ) from None
    if not received:
        raise Busy(f"{settings.judge_model} sent an answer of no known form")
    asked = "\n".join([question.rubric, question.context, *question.texts])
    return _answer(received[-1], entries, per_token, asked)


def _answer(
    response: Any, entries: list[Entry] | None, per_token: Price | None, asked: str
) -> Answer:
    """Read the raw response to a question; `entries` are those that ruler() read, if it could."""
    choice = response.choices[0] if response.choices else None
    content = (choice.message.content if choice else None) or ""
    thoughts = (getattr(choice.message, "reasoning_content", None) if choice else None) or ""
    reason = choice.finish_reason if choice else None
    cut_off = reason == "length"
    if entries is None and not content.strip() and not cut_off and thoughts.lstrip()[:1] == "{":
        content, thoughts = thoughts, ""  # vLLM takes an answer without </think> for a thought
    if entries is None:
        entries = find_entries(content, cut_off=cut_off)
    usage = getattr(response, "usage", None)
    prompt_tokens = int(getattr(usage, "prompt_tokens", 0) or 0)
    completion_tokens = int(getattr(usage, "completion_tokens", 0) or 0)
    if not prompt_tokens and not completion_tokens:  # not told, but paid for all the same
        prompt_tokens = estimate_tokens(asked)
        completion_tokens = estimate_tokens(content + thoughts)
    return Answer(
        entries=to_share(entries),
        cut_off=cut_off,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=(
            None
            if per_token is None
            else prompt_tokens * per_token.input + completion_tokens * per_token.output
        ),
        only_thought=entries is None and only_thought(content, thoughts, cut_off=cut_off),
        filtered=reason == "content_filter",
    )


@functools.cache
def load() -> tuple[Any, Any]:
    """Import litellm and ART's `ruler`, make them log less, and record each raw response.

    Raises:
        UserError: ART is missing, or SSL_CERT_FILE is no file of certificates.
    """
    require_installed()
    os.environ.update(
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # no download at import
        LITELLM_MODE="PRODUCTION",  # both of them load .env otherwise
        PYTHON_DOTENV_DISABLED="1",
    )
    try:
        import litellm
        from art.rewards import ruler
        from litellm.integrations.custom_logger import CustomLogger
        from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
    except OSError as error:  # litellm reads SSL_CERT_FILE as it is imported
        raise UserError(
            f"litellm cannot be imported ({one_line(str(error))}); {CERTIFICATES}"
        ) from None

    class Receipts(CustomLogger):  # type: ignore[misc, unused-ignore]
        async def async_post_call_success_deployment_hook(
            self, request_data: Any, response: Any, call_type: Any
        ) -> None:
            """Record the response; called in the caller's own task, before ruler() reads it."""
            responses = _received.get(None)
            if responses is not None:
                responses.append(response)

    litellm.callbacks.append(Receipts())
    translate(LiteLLMAiohttpTransport)
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
        "drop_params": True,  # what litellm knows that a model does not take
        "timeout": settings.judge_timeout_seconds,
        "max_retries": 0,  # we retry ourselves, and wait as the judge demands
        "num_retries": 0,
    }
    if settings.judge_base_url:
        parameters["api_base"] = bare(settings.judge_base_url)
        # Without it litellm would send OPENAI_API_KEY to that address.
        parameters["api_key"] = "none"
    if settings.judge_api_key:
        parameters["api_key"] = settings.judge_api_key.get_secret_value()
    return parameters
