"""What a judge does not take, learned from its own words: `response_format`, `temperature`, ….

A refusal that is about a parameter is about the judge, whatever window was asked about. So the
parameter is left out, and the question is asked again.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence

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
_TOO_LONG = re.compile(r"context|prompt|input tokens|maximum model length|too long")
_OVERLONG = re.compile(r"context[_ ](length|window|size)|too long|maximum (model )?length")
_ANSWER_TOO_LONG = re.compile(r"must be (less|at most)|at most \d+ completion|maximum value for")


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

    def leave_out(self, name: str, why: str) -> None:
        """Ask without this parameter from now on."""
        if name in self.left_out:
            return  # another question was refused at the same time
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


def named_in(message: str, sent: Sequence[str]) -> str | None:
    """Return the parameter, of those that were sent, that a refusal is about; None if of none."""
    message = message.lower()
    for name in sent:
        if not PARAMETERS[name].search(message):
            continue
        # Too long are the prompt and the answer together: that is not about the parameter.
        is_length = PARAMETERS[name] is _LENGTH
        together = (_TOO_LONG if is_length else _OVERLONG).search(message)
        if not together or (is_length and _ANSWER_TOO_LONG.search(message)):
            return name
    return None


@functools.cache
def _dialect(base_url: str | None, model: str) -> Dialect:
    return Dialect()


def dialect_of(settings: Settings) -> Dialect:
    """Return what this process knows about the judge of these settings."""
    return _dialect(settings.judge_base_url, settings.judge_model)
