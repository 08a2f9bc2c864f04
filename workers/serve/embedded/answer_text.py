"""The text of an answer, made token by token: whole characters only, and nothing after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.trainer.torch.chat_format import ChatFormat

# The bytes of one character show as at most three of these until its last one: more are none.
_NO_CHARACTER = "\ufffd" * 4


class Decoder:
    """Turns tokens into text as they come; the first bytes of a character wait for the others."""

    def __init__(self, tokenizer: Any, special: bool = False) -> None:
        self._decode, self._special = tokenizer.decode, special
        self._ids: list[int] = []
        self._read = 0  # the tokens before this one are already text
        self._shown = ""  # the text of these

    def push(self, token: int) -> str:
        """Return the text that a token completes."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            if not text.endswith(_NO_CHARACTER):
                return ""
            new, self._shown = text[len(self._shown) : -3], text[:-3]
            return new
        new = text[len(self._shown) :]
        if new:  # the tokens that made it stay: the next one's text may depend on them
            del self._ids[: self._read]
            self._read = len(self._ids)
            self._shown = self._text()
        return new

    def rest(self) -> str:
        """Return what is left at the end: bytes that are no character."""
        return self._text()[len(self._shown) :]

    def _text(self) -> str:
        text: str = self._decode(self._ids, skip_special_tokens=not self._special)
        return text


class AnswerText:
    """What a user sees of one answer; `stopped` once one of the stops was in it.

    Where the model writes a lead first (a thought, a channel's name), all is held back until the
    end: only then is it known what the answer is.
    """

    def __init__(self, chat: ChatFormat, stops: Sequence[str], raw: bool = False) -> None:
        self._chat, self._stops = chat, stops
        self.stopped = False
        self._lead = "" if raw else chat.lead
        self._ids: list[int] | None = [] if self._lead.strip() else None
        self._decoder = Decoder(chat.tokenizer)
        self._held = ""

    def push(self, token: int) -> str:
        """Return the text that is certain now."""
        if self._ids is not None:
            self._ids.append(token)
            if self._stops:
                self._cut(self._chat.visible(self._ids))
            return ""
        return self._add(self._decoder.push(token))

    def end(self) -> str:
        """Return what was held back; the answer is over."""
        if self.stopped:
            text = self._held if self._ids is not None else ""
        elif self._ids is not None:
            text = self._chat.visible(self._ids)
        else:
            text = self._add(self._decoder.rest())
            text += "" if self.stopped else self._without_lead(self._held)
        self._held = ""
        return text

    def _without_lead(self, text: str) -> str:
        text, self._lead = text.removeprefix(self._lead), ""
        return text

    def _add(self, text: str) -> str:
        """Return what may be shown of the text held back and this."""
        if not text:
            return ""
        self._held += text
        if self._lead:
            if len(self._held) < len(self._lead):
                return ""
            self._held = self._without_lead(self._held)
        text = self._cut(self._held)
        if self.stopped:
            return text
        wait = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - wait :]
        return text[: len(text) - wait]

    def _cut(self, text: str) -> str:
        """Return the text before the first stop in it."""
        places = [at for at in map(text.find, self._stops) if at >= 0]
        if places:
            self.stopped = True
            self._held = text = text[: min(places)]
        return text


def _begun(text: str, stop: str) -> int:
    """Return how many of the last characters may be the first ones of a stop."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
