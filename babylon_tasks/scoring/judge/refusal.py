"""What a judge's refusal means: for this question, for all questions, or for this moment only."""

from __future__ import annotations

import math
import os
import ssl
from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from babylon_tasks.errors import JudgeFault, JudgeUnavailable
from babylon_tasks.scoring.judge.dialect import named_in
from babylon_tasks.settings import Settings
from babylon_tasks.text import one_line

_TOO_LONG = ("context", "too long", "too large", "maximum model length", "maximum length")
CERTIFICATES = "is SSL_CERT_FILE, if it is set, a file of certificates?"
_FILTERED = ("content_filter", "content_policy", "content management policy", "content policy")
_MISNAMED = (
    "insufficient_quota",
    "provider not provided",
    "model_not_found",
    "model not found",
    "unknown model",
    "invalid model",
)
_UNKNOWN_CA = (18, 19, 20, 21)  # OpenSSL's codes: self-signed, or its issuer is not known here
_SHORTEST_KEY = 6  # what is set where no key is needed ("x", "none") would hide half the message
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")  # how such variables end
_LATER = (408, 409, 425, 429)  # as 500 and more: about this moment
_AT_FAULT = (401, 402, 403, 404, 405)


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


class Refused(Exception):
    """The judge refuses, and does not say whether this question is the reason or any would be."""


class ParameterRefused(Exception):
    """The judge does not take one of the question's parameters."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


def refusal_of(error: Any, settings: Settings, sent: Sequence[str]) -> Exception:
    """Map litellm's error to one of ours, by its status and by words in its message.

    `sent` are the parameters of the question that was refused.
    """
    status = getattr(error, "status_code", None) or 0
    words = f"{error} {_codes(error)}"
    message = f"{type(error).__name__} {words}".lower()
    where = f" at {_host(settings.judge_base_url)}" if settings.judge_base_url else ""
    why = redacted(f"{settings.judge_model}{where} ({type(error).__name__}): {error}", settings)
    if untrusted := _find(error, ssl.SSLCertVerificationError):
        cure = (
            "set SSL_CERT_FILE to your CA's certificate"
            if untrusted.verify_code in _UNKNOWN_CA
            else "check JUDGE_BASE_URL, and the certificate"
        )
        return JudgeUnavailable(
            f"{settings.judge_model}{where}: its TLS certificate is not trusted "
            f"({one_line(untrusted.verify_message)}): {cure}"
        )
    if "[x509" in message or "[ssl: no_cert" in message:
        return JudgeUnavailable(f"{why}; {CERTIFICATES}")
    if status == 400 and any(each in message for each in _FILTERED):
        return JudgeFault(why)
    if status not in (401, 402, 403, *_LATER) and (parameter := named_in(words, sent)):
        return ParameterRefused(why, parameter)
    if status == 404 and "requested parameters" in message:  # OpenRouter's, and it names none
        return Refused(why)
    if status in _AT_FAULT or any(each in message for each in _MISNAMED):
        return JudgeUnavailable(
            f"{why}: check JUDGE_MODEL, JUDGE_BASE_URL, the judge's key and its account"
        )
    if status in (400, 413, 422) and any(each in message for each in _TOO_LONG):
        # Only this question is refused: the judge may answer shorter ones.
        return JudgeFault(
            f"{why}: lower JUDGE_CONTEXT_TOKENS (now {settings.judge_context_tokens})"
        )
    if 400 <= status < 500 and status not in _LATER:
        return Refused(why)
    cause = _find(error, OSError)
    if cause and str(cause) not in why:
        why = redacted(f"{why} ({cause})", settings)
    return Busy(why, _retry_after(error), limited=status in (429, 503, 529))


def redacted(text: str, settings: Settings) -> str:
    """Return the text as one line, without keys: some servers repeat them."""
    keys = [settings.judge_api_key.get_secret_value()] if settings.judge_api_key else []
    keys += [value for name, value in os.environ.items() if name.upper().endswith(_SECRETS)]
    address = urlsplit(settings.judge_base_url or "")
    user = address.netloc.rpartition("@")[0]
    name, _, password = map(unquote, user.partition(":"))
    keys += [user, name, password, b64encode(f"{name}:{password}".encode()).decode()]
    keys += [value for each, value in parse_qsl(address.query) if each != "api-version"]
    keys.append(address.query)
    for key in sorted(map(str.strip, keys), key=len, reverse=True):
        for written in (key, quote(key, safe="")):
            if len(key) >= _SHORTEST_KEY:
                text = text.replace(written, "…")
    return one_line(text, 300)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _find(error: BaseException, kind: type[Any]) -> Any:
    """Return the innermost error of this kind among those that led to it, or None."""
    found = [each for each in _chain(error) if isinstance(each, kind)]
    return found[-1] if found else None


def _codes(error: BaseException) -> str:
    """Return the provider's own error code and type, which litellm's message lacks."""
    for each in _chain(error):
        body = getattr(each, "body", None)
        if isinstance(body, dict):
            return f"{body.get('code')} {body.get('type')} {body.get('param')}"
    return ""


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
