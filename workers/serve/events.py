"""Server-sent events, as OpenAI's API streams an answer: `data: {…}` and at last `data: [DONE]`."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_BYTES = 16 << 20  # of one event; one with a long prompt's log-probabilities has a megabyte

# An empty line; lines end with CR LF, LF or CR. The second half of a CR LF may be yet to come.
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LONGEST_END = 4

_KNOWN = (b"data:", b":", b"event:", b"id:", b"retry:")


class Events:
    """Takes a stream's bytes in any pieces, and gives the data of its events.

    `done` is true after the end's event; what follows is not read.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = bytearray()
        self._searched = 0  # bytes of it in which no event ends

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete now; comments are left out.

        Raises:
            ValueError: It is no such stream.
        """
        rest = self._rest
        rest += piece
        while not self.done and (end := _END.search(rest, self._searched)):
            lines = bytes(rest[: end.start()]).splitlines()
            del rest[: end.end()]
            self._searched = 0
            if not all(line.startswith(_KNOWN) for line in lines if line):
                raise ValueError("not a stream of server-sent events")
            data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
            if data == [b"[DONE]"]:
                self.done = True
            elif data:
                yield b"\n".join(data)
        self._searched = max(0, len(rest) - _LONGEST_END)
        if len(rest) > MOST_BYTES:
            raise ValueError("an event that is too long")
