"""Answers of one model to prompts, many at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jinja2

from babylon_tasks.errors import BadWeights, Final
from babylon_tasks.records.steps import Progress
from babylon_tasks.records.time_left import time_left
from babylon_tasks.records.trainer_requests import GenerateRequest, Generation
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import Batches, OneSequenceTooLarge, within_memory

BATCH_TOKENS = 65_536  # prompts and answers at once; an 8B model keeps 150 kB for each


def generate(
    model: LanguageModel, request: GenerateRequest, on_progress: Callable[[Progress], None]
) -> list[list[Generation]]:
    """Return `n` answers to each prompt; none to one that cannot be shown to the model.

    Each batch has a seed of its own, so what is drawn in one does not depend on how long the
    answers of another are.

    Raises:
        Final: One prompt alone does not fit the GPU.
        BadWeights: A log-probability is not finite.
    """
    prompts = _encode(model, request)
    # One row for each answer.
    numbers = [number for number, ids in enumerate(prompts) if ids for _ in range(request.n)]

    def run(batches: Batches) -> dict[int, Generation]:
        generated: dict[int, Generation] = {}
        counter = _Counter(len(numbers), request.max_tokens, on_progress)
        for rows in batches:
            counter.begin(len(rows))
            answers = model.generator.generate(
                model.network,
                [prompts[numbers[row]] for row in rows],
                request.max_tokens,
                request.temperature,
                request.seed + rows[0],
                counter.token,
            )
            generated.update(zip(rows, answers, strict=True))
            counter.end(sum(len(answer.token_ids) for answer in answers))
        return generated

    lengths = [len(prompts[number]) + request.max_tokens for number in numbers]
    try:
        generated = within_memory(lengths, min(BATCH_TOKENS, model.most_tokens_at_once), run)
    except OneSequenceTooLarge as error:
        raise Final(
            f"CUDA out of memory with one prompt and its answer, {error.tokens} tokens: ask for "
            "fewer tokens, use a smaller BASE_MODEL or a larger GPU"
        ) from None
    generations: list[list[Generation]] = [[] for _ in prompts]
    for row, number in enumerate(numbers):
        if not all(map(math.isfinite, generated[row].logprobs)):
            raise BadWeights(
                f"the log-probabilities of an answer to prompt {number + 1} are not finite: "
                f"are the weights of {request.checkpoint or request.base_model} damaged?"
            )
        generations[number].append(generated[row])
    return generations


class _Counter:
    """Counts what one run has generated, and tells it.

    Args:
        total: Answers to give.
        max_tokens: Of each.
        on_progress: Gets a sign of life at each token of the longest answer.
    """

    def __init__(
        self, total: int, max_tokens: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self._total, self._max_tokens, self._on_progress = total, max_tokens, on_progress
        self._answers = self._tokens = 0  # of the batches that have ended
        self._rows = self._length = 0  # of the batch in work, and of its longest answer
        self._began = time.monotonic()

    def begin(self, rows: int) -> None:
        """Begin a batch of so many answers."""
        self._rows, self._length = rows, 0

    def token(self) -> None:
        """Count one token of the longest answer; the others are taken to be as long."""
        self._length += 1
        self._tell()

    def end(self, tokens: int) -> None:
        """End the batch: its answers have so many tokens."""
        self._answers += self._rows
        self._tokens += tokens
        self._rows = self._length = 0
        self._tell()

    def _tell(self) -> None:
        seconds = time.monotonic() - self._began
        half_done = self._rows * min(self._length / self._max_tokens, 1.0)
        share = (self._answers + half_done) / self._total
        self._on_progress(
            Progress(
                phase="generate",
                done=self._answers,
                total=self._total,
                tokens_per_second=(self._tokens + self._rows * self._length) / max(seconds, 1e-9),
                share=share,
                seconds_left=time_left(seconds, share),
            )
        )


def _encode(model: LanguageModel, request: GenerateRequest) -> list[list[int]]:
    """Token ids of each prompt; none where the template refuses it or the model takes less."""
    texts = {}
    for number, messages in enumerate(request.prompts):
        try:
            tools = request.tools[number] if request.tools else None
            texts[number] = model.chat.prompt(messages, tools=tools)
        except jinja2.TemplateError:
            continue
    encoded: list[list[int]] = [[] for _ in request.prompts]
    for number, ids in zip(texts, model.chat.encode([*texts.values()]), strict=True):
        fits = len(ids) + request.max_tokens <= model.generator.context_tokens
        if fits and model.chat.facts.knows(ids):
            encoded[number] = ids
    return encoded
