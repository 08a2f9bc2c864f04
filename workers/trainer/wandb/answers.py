"""Answers of a model that W&B serves, by its interface of OpenAI's kind; many are asked at a time.

One answer is asked for at a time: then the tokens that W&B counts are those of this answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI

from babylon_tasks.errors import CheckpointUnreadable, Final, RemoteUnavailable
from babylon_tasks.records.steps import Progress
from babylon_tasks.records.time_left import time_left
from babylon_tasks.records.trainer_requests import GenerateRequest, Generation
from workers.trainer.wandb.client import LIFE_SECONDS, refusal_of, words_of

_AT_ONCE = 8
_ANSWER_SECONDS = 300.0
_RETRIES = 5  # by OpenAI's client, after growing waits: too many requests, a fault of the server
_OF_THE_PROMPT = (400, 413, 422)  # too long, or nothing that the chat template takes
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")


class _Refused(Exception):
    """W&B does not take this prompt."""


async def generate_answers(
    key: str,
    url: str,
    model: str,
    request: GenerateRequest,
    on_progress: Callable[[Progress], None],
) -> list[list[Generation]]:
    """Return `n` answers of W&B's `model` to each prompt; none to one that W&B refuses.

    Raises:
        RemoteUnavailable: W&B does not answer.
        UserError: It refuses the key.
        CheckpointUnreadable: It does not have the model.
        Final: It refuses every prompt.
    """
    client = AsyncOpenAI(api_key=key, base_url=url, timeout=_ANSWER_SECONDS, max_retries=_RETRIES)
    async with client:
        asking = _Asking(client, model, request)
        work, began = asyncio.ensure_future(asking.everything()), time.monotonic()
        try:
            while not work.done():
                share = asking.done / max(asking.total, 1)
                left = time_left(time.monotonic() - began, share)
                on_progress(
                    Progress("generate", asking.done, asking.total, share=share, seconds_left=left)
                )
                await asyncio.wait([work], timeout=LIFE_SECONDS)
            return work.result()
        finally:
            work.cancel()


class _Asking:
    """The questions of one request; `done` of `total` are answered."""

    def __init__(self, client: AsyncOpenAI, model: str, request: GenerateRequest) -> None:
        self._client, self._model, self._request = client, model, request
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._why = ""  # the last prompt was refused
        self.done = 0
        self.total = len(request.prompts) * request.n

    async def everything(self) -> list[list[Generation]]:
        numbers = range(len(self._request.prompts))
        tasks = [asyncio.ensure_future(self._prompt(number)) for number in numbers]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # after the first error nobody wants the others' answers
        if answers and not any(answers):
            raise Final(f"W&B refuses every prompt ({self._why})")
        return answers

    async def _prompt(self, number: int) -> list[Generation]:
        try:
            return [await self._answer(number, each) for each in range(self._request.n)]
        except _Refused as refused:
            self._why = str(refused)
            return []

    async def _answer(self, number: int, which: int) -> Generation:
        """Ask one question.

        Raises:
            _Refused: W&B does not take the prompt.
            BabylonError: As `generate_answers` says.
        """
        request = self._request
        body: dict[str, Any] = {
            "model": self._model,
            "messages": request.prompts[number],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": 1.0,
            "seed": request.seed + number * request.n + which,
            "logprobs": True,
        }
        if request.tools and (tools := request.tools[number]):
            body |= {"tools": tools, "tool_choice": "none"}  # an answer is a text, as it is here
        async with self._slots:
            try:
                answer = await self._client.post("/chat/completions", body=body, cast_to=object)
            except APIError as error:
                status = error.status_code if isinstance(error, APIStatusError) else None
                if status in _OF_THE_PROMPT:
                    raise _Refused(words_of(error)) from error
                if status == 404:
                    raise CheckpointUnreadable(
                        f"W&B does not have {self._model} ({words_of(error)})"
                    ) from error
                raise refusal_of(error, f"an answer of {self._model}") from error
        self.done += 1
        try:
            return _generation(answer)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise RemoteUnavailable(f"an answer of {self._model} cannot be read") from error


def _generation(answer: Any) -> Generation:
    """Read one answer; without ids or log-probabilities where W&B tells none."""
    (choice,) = answer["choices"]
    content = (choice.get("logprobs") or {}).get("content") or ()
    ids = [_TOKEN_ID.fullmatch(each["token"]) for each in content]
    return Generation(
        text=str(choice["message"].get("content") or ""),
        token_ids=tuple(int(match[1]) for match in ids if match) if all(ids) else (),
        logprobs=tuple(float(each["logprob"]) for each in content),
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
    )
