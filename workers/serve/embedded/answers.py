"""Answers and chunks as OpenAI's API and vLLM write them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from workers.serve.backend import Question, Version
from workers.serve.embedded.answer_text import Decoder
from workers.serve.embedded.options import Options
from workers.serve.embedded.request import Piece
from workers.serve.embedded.sampler import Chosen
from workers.trainer.torch.chat_format import ChatFormat

_LEAST = -9999.0  # OpenAI's for a token without any probability; JSON has no infinity


class Answer:
    """Writes the objects of one request, whole or in chunks."""

    def __init__(
        self,
        version: Version,
        question: Question,
        options: Options,
        chat: ChatFormat,
        prompt: list[int],
    ) -> None:
        self._chat, self._options, self._question = chat, options, question
        self._prompt = prompt
        self._is_chat = question.kind == "chat"
        name = "chat.completion" if self._is_chat else "text_completion"
        chunk = ".chunk" if question.stream and self._is_chat else ""
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": name + chunk,
            "created": int(time.time()),
            "model": version.name,
        }
        self._tells_logprobs = options.wants_logprobs or question.captured
        self._by_id = bool(options.return_tokens_as_token_ids) or not options.wants_logprobs
        self._begun = False
        self._rows = [_Row(chat) for _ in range(options.n or 1)]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the answer; one piece for each row, in their order."""
        body = {**self._head, "choices": [self._whole_choice(p) for p in pieces]}
        return {**body, "usage": self._usage(), **self._prompt_ids()}

    def first_chunks(self) -> list[dict[str, Any]]:
        """Return the chunks before any token: who speaks."""
        if not self._is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [
            {
                **self._head,
                "choices": [{"index": n, "delta": delta, "logprobs": None, "finish_reason": None}],
                **self._prompt_ids(),
            }
            for n in range(len(self._rows))
        ]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the chunk of a piece."""
        if self._is_chat:
            choice = {**self._choice(piece), "delta": {"content": piece.text}}
        else:
            choice = {**self._choice(piece), "text": piece.text}
        first = {} if self._is_chat or self._begun else self._prompt_ids()
        self._begun = True
        return {**self._head, "choices": [choice], **first}

    def last_chunks(self) -> list[dict[str, Any]]:
        """Return the chunk after the last one, if it was asked for: the tokens used."""
        if not self._options.includes_usage:
            return []
        return [{**self._head, "choices": [], "usage": self._usage()}]

    def _whole_choice(self, piece: Piece) -> dict[str, Any]:
        choice = self._choice(piece)
        if self._is_chat:
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            return {**choice, "message": message}
        return {**choice, "text": piece.text}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        row = self._rows[piece.row]
        shown = self._shown(row, piece.tokens)
        row.tokens += len(piece.tokens)
        logprobs = None
        if self._tells_logprobs:
            write = self._chat_logprobs if self._is_chat else self._text_logprobs
            logprobs = write(row, shown, piece.tokens)
        return {
            "index": piece.row,
            "finish_reason": piece.finish_reason,
            "logprobs": logprobs,
            "token_ids": [each.token for each in piece.tokens],
        }

    def _shown(self, row: _Row, tokens: Sequence[Chosen]) -> list[str]:
        if not self._tells_logprobs:
            return []
        if self._by_id:
            return [f"token_id:{each.token}" for each in tokens]
        return [row.decoder.push(each.token) for each in tokens]

    def _chat_logprobs(
        self, row: _Row, shown: Sequence[str], tokens: Sequence[Chosen]
    ) -> dict[str, Any]:
        content = []
        for text, each in zip(shown, tokens, strict=True):
            top = [_entry(self._name(token), value) for token, value in each.top]
            content.append({**_entry(text, each.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _text_logprobs(
        self, row: _Row, shown: Sequence[str], tokens: Sequence[Chosen]
    ) -> dict[str, Any]:
        offsets = []
        for text in shown:
            offsets.append(row.offset)
            row.offset += len(text)
        tops = [{self._name(token): max(v, _LEAST) for token, v in each.top} for each in tokens]
        return {
            "tokens": [*shown],
            "token_logprobs": [max(each.logprob, _LEAST) for each in tokens],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        if self._by_id:
            return f"token_id:{token}"
        text: str = self._chat.tokenizer.decode([token])
        return text

    def _usage(self) -> dict[str, int]:
        completion = sum(row.tokens for row in self._rows)
        prompt = len(self._prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _prompt_ids(self) -> dict[str, Any]:
        """Of a stream that is cut, nothing else tells how long the prompt was."""
        return {"prompt_token_ids": self._prompt}


class _Row:
    """How far the text of one row's tokens is written."""

    def __init__(self, chat: ChatFormat) -> None:
        self.decoder = Decoder(chat.tokenizer, special=True)
        self.offset = self.tokens = 0


def _entry(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(value, _LEAST), "bytes": [*text.encode()]}
