"""Asks a model for its decisions, at any endpoint that speaks OpenAI's API.

What only our own endpoint and vLLM know is asked for as well: the tokens of an answer by id, and
none of the sampling that would hide what the model itself thinks. Another server may refuse that;
it is asked without, then.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Annotated, Any

import httpx
import msgspec
from pydantic import SecretStr

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.recorded_steps import NULL
from babylon_tasks.records.traces import read_logprobs
from babylon_tasks.simulation.game.hour import Answer, Question
from babylon_tasks.simulation.values import seeded
from babylon_tasks.text import one_line
from babylon_tasks.work import aio

AT_ONCE = 8  # requests
MAX_TOKENS = 32  # of an answer
_ANSWER_SECONDS = 120.0  # for one answer; a server's first answer is slow
_TRIES = 5
_WAIT_SECONDS = 1.0  # before the second try; doubled before each other
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_OLD_STEP = re.compile(r"step-(0|[1-9][0-9]{0,8})")  # the fingerprint that release 0.1.0 gives
_STEP_BY_NAME = re.compile(r".+@(0|[1-9][0-9]{0,8})")
_OURS = "x-babylon-version"  # a header of our endpoint's answers
_MORE: dict[str, Any] = {
    "logprobs": True,
    "return_tokens_as_token_ids": True,
    # vLLM would take the model's own defaults, which draw from fewer tokens than the trainer knows.
    "top_k": -1,
    "repetition_penalty": 1.0,
    # As the trainer, and the server that attaches log-probabilities, write a prompt.
    "chat_template_kwargs": {"enable_thinking": False, "preserve_thinking": True},
}


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    logprobs: msgspec.Raw = NULL
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    model: str | None = None
    system_fingerprint: str | None = None


class Endpoint:
    """An `Ask` of the game over a model's name at a base URL such as `http://host:8000/v1`.

    Args:
        url: Base URL; without a path it gets `/v1`.
        model: The name that the endpoint knows; it finds the version for each request.
        key: Sent as a bearer token.
        seed: A server that draws by the request's seed draws the same for it again.

    Raises:
        UserError: The URL is none.
    """

    def __init__(self, url: str, model: str, key: SecretStr | None = None, seed: int = 0) -> None:
        path, self._host = _parts(url)
        self._url = url.rstrip("/") + ("" if path.strip("/") else "/v1")
        self._model = model
        self._headers = (
            {b"Authorization": b"Bearer " + key.get_secret_value().strip().encode()} if key else {}
        )
        self._more = _MORE
        self._rng = seeded("asked", seed)

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask for an answer to each question, several at once.

        Raises:
            UserError: The endpoint refuses a request, or does not speak OpenAI's API.
            ServerUnavailable: It does not answer, or is busy for longer than half a minute.
        """
        return aio.run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
            async with slots:
                return await self._ask(client, body)

        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, headers=self._headers) as client:
            asked = [asyncio.create_task(ask(client, self._body(each))) for each in questions]
            try:
                return list(await asyncio.gather(*asked))
            finally:  # after the first that fails, no other is worth waiting for
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": question.messages,
            "user": question.agent,
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": self._rng.randrange(2**31),
        }

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
        more = self._more
        response = await self._post(client, body | more)
        if more and response.status_code in (400, 422):
            without = await self._post(client, body)
            if without.is_success:
                self._more, response = {}, without
        if not response.is_success:
            raise UserError(self._refusal(response))
        return self._read(response)

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """Send a request, and repeat it while the server is busy or away."""
        for tried in range(_TRIES):
            if tried:
                await asyncio.sleep(_WAIT_SECONDS * 2 ** (tried - 1))
            try:
                response = await client.post(f"{self._url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                reason = type(error).__name__
                continue
            if response.status_code not in _BUSY:
                return response
            reason = f"HTTP {response.status_code}: {_said(response)}"
        raise ServerUnavailable(f"{self._host} does not answer after {_TRIES} tries ({reason})")

    def _refusal(self, response: httpx.Response) -> str:
        status = response.status_code
        if status in (401, 403):  # what it says may quote the key
            return f"{self._host} refuses the key (HTTP {status}): --key-env names its variable"
        if status == 404:
            return f"{self._host} does not know --model {self._model}: {_said(response)}"
        return f"{self._host} refuses a request (HTTP {status}): {_said(response)}"

    def _read(self, response: httpx.Response) -> Answer:
        try:
            completion = msgspec.json.decode(response.content, type=_Completion)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            reason = one_line(str(error), 200)
            raise UserError(f"{self._host} does not answer as OpenAI's API: {reason}") from None
        choice = completion.choices[0]
        return Answer(
            text=choice.message.content or "",
            version=self._version(completion),
            logprobs=read_logprobs(choice.logprobs),
            model=self._model,
            finish_reason=choice.finish_reason,
            ours=_OURS in response.headers,
        )

    def _version(self, completion: _Completion) -> str | None:
        """Return `{lineage}@{step}` if the answer tells the step, or the model's name has it."""
        names = [name for name in (completion.model, self._model) if name]
        if named := next((name for name in names if _STEP_BY_NAME.fullmatch(name)), None):
            return named
        old = _OLD_STEP.fullmatch(completion.system_fingerprint or "")
        return f"{self._model}@{old[1]}" if old else None


def _parts(url: str) -> tuple[str, str]:
    """Return a URL's path and its host, which may be shown: before it may stand a password."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError("the endpoint's address is no URL such as http://127.0.0.1:8000/v1")
    return parts.path, parts.host


def _said(response: httpx.Response) -> str:
    """Return what a server says of an error, in one line."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return one_line(str(response.json()["error"]["message"]), 200)
    return one_line(response.text, 200) or response.reason_phrase
