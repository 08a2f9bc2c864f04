"""Asks a vLLM server for the log-probabilities of recorded responses.

Each call takes three requests. `/tokenize` gives the tokens of the prompt, as the chat template
writes it before an answer, then those of the whole conversation, which go on from them; the trainer
makes the same. `/v1/completions` with them and `prompt_logprobs` gives the log-probability of each.
Where a token crosses the border between prompt and response, the response is encoded alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import httpx
import msgspec
from pydantic import SecretStr

from babylon_tasks.records.steps import LEAST_LOGPROB, Call, Logprobs
from babylon_tasks.text import one_line

ANSWER_SECONDS = 30.0  # for one answer; a server's first answer is slow
_TRIES = 3
_WAIT_SECONDS = 0.5  # before the second try; doubled before the third
_BUSY = (408, 429, 500, 502, 503, 504)

# What the trainer, too, passes to the chat template (workers/trainer/torch/chat_format.py).
_TEMPLATE = {"enable_thinking": False, "preserve_thinking": True}

T = TypeVar("T")


class NoAnswer(Exception):
    """The server gave no log-probabilities for this call; the message says why in one line."""


class Refused(NoAnswer):
    """The server works, but refuses this request; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Tokens(msgspec.Struct):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]


class _Likely(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Likely] | None]


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class LogprobServer:
    """One OpenAI-compatible vLLM server at a base URL such as `http://host:8000/v1`."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: SecretStr | None) -> None:
        self._client = client
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = (
            {b"Authorization": b"Bearer " + key.get_secret_value().strip().encode()} if key else {}
        )
        self._ends: dict[str, list[int]] = {}  # what follows a response, by the model's name

    async def ask(self, model: str, call: Call) -> Logprobs:
        """Return this model's log-probabilities of the call's response and its end of turn.

        Raises:
            Refused: The server works, but refuses a request.
            NoAnswer: It is away, or its answer is unusable.
        """
        if model not in self._ends:
            self._ends[model] = await self._end(model)
        tools = {"tools": shown} if (shown := call.shown_tools()) else {}
        messages = call.prompt()
        prompt, whole = await self._both(model, messages, call.response, **tools)
        after = len(self._ends[model])
        answer = whole[len(prompt) : len(whole) - max(0, after - 1)]
        if whole[: len(prompt)] != prompt:
            answer = await self._tokens(model, prompt=call.response)
            answer += self._ends[model][:1]
        completion = await self._post(
            "/v1/completions",
            _Completion,
            model=model,
            prompt=prompt + answer,
            max_tokens=1,
            temperature=0,
            prompt_logprobs=0,
        )
        return _read(completion, prompt, answer)

    async def _both(
        self, model: str, messages: list[Any], response: str, **tools: Any
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, and of the conversation with the response."""
        answer = {"role": "assistant", "content": response}
        return (
            await self._tokens(model, messages=messages, add_generation_prompt=True, **tools),
            await self._tokens(
                model, messages=[*messages, answer], add_generation_prompt=False, **tools
            ),
        )

    async def _end(self, model: str) -> list[int]:
        """Return the tokens that follow every response; none if the template writes none."""
        user = {"role": "user", "content": "x"}
        prompt, one = await self._both(model, [user], "y")
        _, other = await self._both(model, [user], "z")
        same = 0
        while same < min(len(one), len(other)) - len(prompt) and one[-1 - same] == other[-1 - same]:
            same += 1
        return one[len(one) - same :]

    async def _tokens(self, model: str, **of: Any) -> list[int]:
        """Return the token ids of messages, or of a text."""
        about = {"chat_template_kwargs": _TEMPLATE} if "messages" in of else {}
        answer = await self._post(
            "/tokenize", _Tokens, model=model, add_special_tokens=False, **about, **of
        )
        return answer.tokens

    async def _post(self, path: str, kind: type[T], **body: Any) -> T:
        """Send a request, and repeat it if the server is busy or away."""
        wait_seconds = _WAIT_SECONDS
        for tried in range(1, _TRIES + 1):
            try:
                return await self._try(path, kind, body)
            except Refused:
                raise
            except NoAnswer:
                if tried == _TRIES:
                    raise
            await asyncio.sleep(wait_seconds)
            wait_seconds *= 2
        raise AssertionError("unreachable")

    async def _try(self, path: str, kind: type[T], body: dict[str, Any]) -> T:
        at = f"LOGPROBS_URL ({path})"  # not its value, which may hold a password
        try:
            # httpx's own limit is for each read: a server that sends slowly would never reach it.
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._client.post(
                    self._url + path, json=body, headers=self._headers
                )
        except TimeoutError:
            raise NoAnswer(f"{at} does not answer in {ANSWER_SECONDS:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The error's text may quote the key, so it is left out.
            raise NoAnswer(f"{at} cannot be asked: {type(error).__name__}") from None
        if response.is_success:
            with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                return msgspec.json.decode(response.content, type=kind)
        reply = one_line(response.content[:400].decode(errors="replace"), 200)
        if response.status_code in _BUSY:
            raise NoAnswer(f"{at} says {response.status_code}: {reply}")
        if not response.is_success:
            raise Refused(f"{at} says {response.status_code}: {reply}", response.status_code)
        raise NoAnswer(f"{at} gives an answer in another form than vLLM's: {reply}")


def _read(completion: _Completion, prompt: Sequence[int], answer: Sequence[int]) -> Logprobs:
    """Return the log-probabilities of the answer's tokens, which follow those of the prompt.

    Raises:
        NoAnswer: The server's answer is about other tokens.
    """
    likelihoods = completion.choices[0].prompt_logprobs if completion.choices else []
    if not answer or len(likelihoods) != len(prompt) + len(answer):
        raise NoAnswer(
            f"log-probabilities of {len(likelihoods)} tokens, not {len(prompt) + len(answer)}"
        )
    values = []
    for token_id, likely in zip(answer, likelihoods[len(prompt) :], strict=True):
        value = likely.get(str(token_id)) if likely else None
        if value is None or not LEAST_LOGPROB <= value.logprob <= 0:
            raise NoAnswer(
                f"no log-probability of token {token_id}, although it was in the request"
            )
        values.append(value.logprob)
    return Logprobs(tuple(answer), tuple(values))
