"""What a worker and its trainer process say to each other: one JSON object a line.

Worker to trainer: a `StepRequest`; and `NOTED` after each progress that names a job, once Postgres
has that job. Trainer to worker: one of `Answer`; their `type` says which. Closing the pipe to the
trainer ends it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from babylon_tasks import errors
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.text import one_line

NOTED = b'{"noted":true}\n'

_MESSAGE_CHARACTERS = 2000  # what rl.windows.last_error keeps

ErrorKind = Literal["final", "user", "retryable", "checkpoint", "away"]

# The most exact class first: CheckpointUnreadable is a UserError too.
_ERRORS: dict[ErrorKind, type[errors.BabylonError]] = {
    "away": errors.RemoteUnavailable,
    "checkpoint": errors.CheckpointUnreadable,
    "user": errors.UserError,
    "final": errors.Final,
    "retryable": errors.Retryable,
}


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process runs; nothing heavy is imported yet."""


class Holding(msgspec.Struct, frozen=True, tag="holding"):
    """The process has the lock of this GPU, until it ends."""

    gpu: str


class ProgressAnswer(Progress, frozen=True, tag="progress"):
    """A sign of life of the step under way."""


class ResultAnswer(StepResult, frozen=True, tag="result"):
    """The step is done and its files are in the request's `output_dir`."""


class ErrorAnswer(msgspec.Struct, frozen=True, tag="error"):
    """The step failed; `message` is one line that says what to do."""

    kind: ErrorKind
    message: str

    def exception(self) -> errors.BabylonError:
        """Make the error to raise on the worker's side."""
        return _ERRORS[self.kind](self.message)


Answer = Ready | Holding | ProgressAnswer | ResultAnswer | ErrorAnswer

_encoder = msgspec.json.Encoder()
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_requests = msgspec.json.Decoder(StepRequest)


def encode(message: StepRequest | Answer) -> bytes:
    """Encode a message as one line, its newline included."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> StepRequest:
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


def answer_progress(progress: Progress) -> ProgressAnswer:
    """Turn the record into an answer."""
    return ProgressAnswer(**msgspec.structs.asdict(progress))


def answer_result(result: StepResult) -> ResultAnswer:
    """Turn the record into an answer."""
    return ResultAnswer(**msgspec.structs.asdict(result))


def answer_error(error: errors.BabylonError) -> ErrorAnswer:
    """Turn an error into an answer; its message is made one line that JSON and Postgres take."""
    kinds: list[ErrorKind] = [kind for kind, cls in _ERRORS.items() if isinstance(error, cls)]
    return ErrorAnswer(
        kind=kinds[0] if kinds else "retryable", message=one_line(str(error), _MESSAGE_CHARACTERS)
    )


def plain_progress(answer: ProgressAnswer) -> Progress:
    """Turn an answer into the plain record."""
    return Progress(**msgspec.structs.asdict(answer))


def plain_result(answer: ResultAnswer) -> StepResult:
    """Turn an answer into the plain record."""
    return StepResult(**msgspec.structs.asdict(answer))
