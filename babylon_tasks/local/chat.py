"""A talk with a served model, streamed, over the OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import SecretStr

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.text import one_line

_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 300.0  # a model may be loaded first


class Chat:
    """The messages of one talk; `answered_by` names the version that gave the last answer."""

    def __init__(self, base_url: str, model: str, key: SecretStr | None) -> None:
        self._url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._messages: list[dict[str, str]] = []
        self.answered_by = model

    def say(self, text: str) -> Iterator[str]:
        """Send a message and yield the pieces of the answer; what fails is not remembered.

        Raises:
            UserError: The URL is none, or the endpoint refuses the question.
            ServerUnavailable: The endpoint does not answer, or breaks off.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        for piece in self._stream(asked):
            pieces.append(piece)
            yield piece
        self._messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[str]:
        body = {"model": self._model, "messages": messages, "stream": True}
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        try:
            with httpx.stream(
                "POST", self._url, json=body, headers=self._headers, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                self.answered_by = one_line(response.headers.get("x-babylon-version", self._model))
                yield from self._pieces(response)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"--url {self._url}: {error}") from error
        except httpx.HTTPError as error:
            raise ServerUnavailable(
                f"{self._url} does not answer: {error or type(error).__name__}"
            ) from error

    def _pieces(self, response: httpx.Response) -> Iterator[str]:
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield _piece(data)
        raise ServerUnavailable(f"{self._url} broke off")


def _piece(data: str) -> str:
    """Return the text of one chunk, which a terminal can show.

    Raises:
        ServerUnavailable: It is no chunk, or says that the answer failed.
    """
    try:
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise ServerUnavailable(f"the answer failed: {_message(chunk)}")
        text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServerUnavailable(f"the answer cannot be read: {one_line(data, 100)}") from error
    # A terminal would obey escape sequences.
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _refusal(response: httpx.Response) -> UserError | ServerUnavailable:
    try:
        said = _message(response.json())
    except (ValueError, LookupError, TypeError):
        said = one_line(response.text, 200)
    kind = ServerUnavailable if response.is_server_error else UserError
    return kind(f"HTTP {response.status_code}: {said}")


def _message(body: dict[str, Any]) -> str:
    return one_line(str(body["error"]["message"]))
