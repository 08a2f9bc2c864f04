"""Which answers of the base model may not be its own, and so are not remembered.

vLLM's CPU kernels take a row without an adapter for one of the last slot where others of the batch
have one. A server does not tell whether it runs on a CPU, so this is for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from workers.serve.backend import Question


class Rows:
    """The requests that one server has under way from here."""

    def __init__(self) -> None:
        self._plain: set[Row] = set()
        self._adapters = 0

    @contextlib.contextmanager
    def asking(self, *, adapter: bool) -> Iterator[Row]:
        """Count a request, of an adapter or of the base model, while it is under way."""
        row = Row()
        if adapter:
            self._adapters += 1
            for other in self._plain:
                other.mixed = True
        else:
            row.mixed = self._adapters > 0
            self._plain.add(row)
        try:
            yield row
        finally:
            self._adapters -= adapter
            self._plain.discard(row)


class Row:
    """One of them; `mixed`: it is of the base model, and was under way beside adapters."""

    mixed = False

    def check(self, answer: dict[str, Any], question: Question) -> None:
        """Take the token ids out of an answer or a chunk that is mixed: it is not remembered then.

        Who asked for ids sees them.
        """
        if self.mixed and question.captured and not question.body.get("return_token_ids"):
            for choice in answer.get("choices") or ():
                choice.pop("token_ids", None)
