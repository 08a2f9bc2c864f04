"""The markup that models write around a thought, and recorded answers that hold some."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Thoughts(NamedTuple):
    """The two marks around a thought."""

    begin: str
    end: str

    def cut(self, response: str) -> tuple[str, str]:
        """Return the thought of a response, or none, and the answer after it.

        A server that opens the thought in the prompt leaves the first mark out. The answer is empty
        where a thought has no end.
        """
        thought, end, answer = response.rpartition(self.end)
        if end:
            return thought.strip().removeprefix(self.begin).strip(), answer.lstrip()
        if response.lstrip().startswith(self.begin):
            return response.strip().removeprefix(self.begin).strip(), ""
        return "", response

    def only(self, text: str) -> bool:
        """Tell whether the text is nothing but an empty thought, or a part of one."""
        begin, end = re.escape(self.begin), re.escape(self.end)
        return re.fullmatch(rf"\s*({begin})?\s*({end})?\s*", text) is not None


_KNOWN = (
    Thoughts("<think>", "</think>"),
    Thoughts("<thinking>", "</thinking>"),
    Thoughts("<thought>", "</thought>"),
    Thoughts("<seed:think>", "</seed:think>"),
    Thoughts("[THINK]", "[/THINK]"),
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>"),
    Thoughts("◁think▷", "◁/think▷"),
)


def thoughts_of(template: str, tokens: Iterable[str]) -> Thoughts | None:
    """Return the marks that this template writes or this tokenizer has; None: it knows none."""
    vocabulary = set(tokens)
    for one in _KNOWN:
        if one.end in template or {one.begin, one.end} <= vocabulary:
            return one
    return None
