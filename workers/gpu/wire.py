"""What a worker and its trainer process say to each other: one JSON object a line.

Worker to trainer: one of `Request`; and `NOTED` after each progress that names a job, once Postgres
has that job. Trainer to worker: any number of other answers, then one of `Result` or an
`ErrorAnswer`. The `type` of a line says which it is. Closing the pipe to the trainer ends it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from babylon_tasks import errors
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from babylon_tasks.text import one_line

NOTED = b'{"noted":true}\n'

_MESSAGE_CHARACTERS = 2000  # what rl.windows.last_error keeps

ErrorKind = Literal["final", "user", "retryable", "checkpoint", "away", "weights"]

# The most exact class first: CheckpointUnreadable is a UserError too.
_ERRORS: dict[ErrorKind, type[errors.BabylonError]] = {
    "away": errors.RemoteUnavailable,
    "checkpoint": errors.CheckpointUnreadable,
    "user": errors.UserError,
    "weights": errors.BadWeights,
    "final": errors.Final,
    "retryable": errors.Retryable,
}


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process runs; nothing heavy is imported yet."""


class Holding(msgspec.Struct, frozen=True, tag="holding"):
    """The process has the lock of this GPU, until it ends."""

    gpu: str


class ErrorAnswer(msgspec.Struct, frozen=True, tag="error"):
    """The request failed; `message` is one line that says what to do."""

    kind: ErrorKind
    message: str

    def exception(self) -> errors.BabylonError:
        """Make the error to raise on the worker's side."""
        return _ERRORS[self.kind](self.message)


Request = StepRequest | EvaluateRequest | GenerateRequest
Result = StepResult | EvaluateResult | GenerateResult
Answer = Ready | Holding | Progress | Result | ErrorAnswer

_encoder = msgspec.json.Encoder()
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def encode(message: Request | Answer) -> bytes:
    """Encode a message as one line, its newline included."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Decode a line from the worker.

    Raises:
        msgspec.DecodeError: The line is no request.
    """
    return _requests.decode(line)


def decode_answer(line: bytes) -> Answer:
    """Decode a line from the trainer.

    Raises:
        msgspec.DecodeError: The line is no answer.
    """
    return _answers.decode(line)


def answer_error(error: errors.BabylonError) -> ErrorAnswer:
    """Turn an error into an answer; its message is made one line that JSON and Postgres take."""
    kinds: list[ErrorKind] = [kind for kind, cls in _ERRORS.items() if isinstance(error, cls)]
    return ErrorAnswer(
        kind=kinds[0] if kinds else "retryable", message=one_line(str(error), _MESSAGE_CHARACTERS)
    )
