"""What a judge does not take, learned from its own words: `response_format`, `temperature`, ….

A refusal that is about a parameter is about the judge, whatever window was asked about. So the
parameter is left out, and the question is asked again.
"""

from __future__ import annotations

import functools
import logging
import re

from babylon_tasks.settings import Settings

log = logging.getLogger(__name__)

_LENGTH = re.compile(r"max[_ ](completion[_ ]|output[_ ]|new[_ ])?tokens")

# In the order in which they are left out when a refusal names none. Each with the words that mean
# it: OpenAI, Azure, DeepSeek, Groq, Together, Mistral, vLLM, Ollama, llama.cpp, LM Studio, TGI,
# Bedrock and the gateways before them do not agree on any.
PARAMETERS = {
    "response_format": re.compile(
        r"response[_ ]?format|json[_ ]?(schema|object|mode)|structured[_ ]?(output|generation)"
        r"|output_(format|config)|guided[_ ](json|decoding|grammar)|grammar|\bformat\b.*\bschema"
    ),
    "temperature": re.compile(r"temperature"),
    "max_tokens": _LENGTH,
    "max_completion_tokens": _LENGTH,  # the newer name of the same
    "system role": re.compile(
        r"system[ _'\"`]*(role|message|prompt|instruction)|roles?\b[^.]{0,40}\bsystem\b"
        r"|developer instruction|only user and assistant|roles must alternate"
        r"|should be 'user'|first message must be|role: input should be"
    ),
}
_REFUSED = re.compile(
    r"unsupported|not (be )?(support|permit|allow|accept|available|recogni[sz]ed|enabled|valid)"
    r"|(does|do|did)( no|n.?)t (support|allow|accept|permit|take|recogni[sz]e|have|enable)"
    r"|unavailable|un(known|recogni[sz]ed|expected)|invalid|in?compatible|forbidden|extra_forbidden"
    r"|no (longer|endpoints?)|deprecated|must (be|alternate)|should be|only|cannot|can't|can not"
    r"|fail(ed|ure)|error|illegal|reject|disabled|not implemented|unable|remove|instead|too large"
    r"|at most|exceed|less than|positive|greater than|violat|disallow|additional propert"
)
_MUST_BE_SMALLER = re.compile(r"context|prompt|input tokens|maximum model length|too long")


class Dialect:
    """The parameters that one judge refused, for the life of this process."""

    def __init__(self) -> None:
        self.left_out: frozenset[str] = frozenset()

    def sent(self) -> list[str]:
        """Return the parameters that a question has now, in the order of `PARAMETERS`."""
        sent = [name for name in PARAMETERS if name not in self.left_out]  # and one length only
        return [
            each for each in sent if each != "max_completion_tokens" or "max_tokens" not in sent
        ]

    def named_in(self, message: str) -> str | None:
        """Return the parameter of the question that a refusal is about; None if it names none."""
        message = message.lower()
        if not _REFUSED.search(message):
            return None
        for name in self.sent():
            if not PARAMETERS[name].search(message):
                continue
            if name.startswith("max_") and _MUST_BE_SMALLER.search(message):
                continue  # the prompt and the answer together are too long
            return name
        return None

    def leave_out(self, name: str, why: str) -> None:
        """Ask without this parameter from now on."""
        self.left_out |= {name}
        log.warning("asking without %s from now on: %s", name, why)

    def parameters(self, max_tokens: int) -> dict[str, object]:
        """Return litellm's parameters for a question whose answer has at most so many tokens."""
        sent = self.sent()
        parameters: dict[str, object] = {}
        if "response_format" not in sent:  # ruler() always has one
            parameters["additional_drop_params"] = ["response_format"]
        if "temperature" in sent:
            parameters["temperature"] = 0
        for name in ("max_tokens", "max_completion_tokens"):
            if name in sent:
                parameters[name] = max_tokens
        if "system role" not in sent:
            parameters["supports_system_message"] = False  # its text goes to the user's message
        return parameters


@functools.cache
def _dialect(base_url: str | None, model: str) -> Dialect:
    return Dialect()


def dialect_of(settings: Settings) -> Dialect:
    """Return what this process knows about the judge of these settings."""
    return _dialect(settings.judge_base_url, settings.judge_model)
