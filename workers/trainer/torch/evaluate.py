"""How likely one model finds recorded answers: the log-probabilities that a step starts from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from babylon_tasks.errors import BadWeights, Final
from babylon_tasks.records.steps import Progress, Sample
from babylon_tasks.records.trainer_requests import EvaluateRequest, Likelihood
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.memory import Batches, OneSequenceTooLarge, within_memory
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.sequences import Sequences
from workers.trainer.torch.tokenized import tokenize_samples

SPAN = (0.05, 1.0)  # the passes' part of the whole request, by rule of thumb


@dataclass(frozen=True)
class Evaluation:
    """A `Likelihood` for each sample, and the calls that took part or did not."""

    trajectories: list[Likelihood]
    calls: int
    dropped: int


def evaluate(
    model: LanguageModel,
    samples: list[Sample],
    request: EvaluateRequest,
    on_progress: Callable[[Progress], None],
) -> Evaluation:
    """Sum the log-probabilities of each trajectory's response tokens, by the model as it is.

    Raises:
        Final: One sequence does not fit the GPU.
        BadWeights: A log-probability is not finite.
    """
    sequences = Sequences()
    counts: list[tuple[int, int]] = []  # calls and answer tokens of each sample
    dropped = 0
    for one in tokenize_samples(model.chat, samples, request.max_sequence_tokens):
        for call in one.calls:
            sequences.add(call.prompt, call.answer, advantage=0.0, weight=1.0)
        counts.append((len(one.calls), one.answer_tokens))
        dropped += one.dropped.total()
        share = SPAN[0] * len(counts) / len(samples)
        on_progress(Progress("tokenize", len(counts), len(samples), share=share))
    sums = iter(_sums(model, sequences, request, on_progress))
    likelihoods = []
    for sample, (calls, tokens) in zip(samples, counts, strict=True):
        of_calls = list(itertools.islice(sums, calls))
        logprob = sum((each for each, _ in of_calls), 0.0)
        if not math.isfinite(logprob):
            raise BadWeights(
                f"the log-probabilities of trajectory {sample.trajectory_id} are not finite: "
                f"are the weights of {request.checkpoint or request.base_model} damaged?"
            )
        entropy = sum((each for _, each in of_calls), 0.0)
        likelihoods.append(Likelihood(sample.trajectory_id, tokens, logprob, entropy))
    return Evaluation(likelihoods, len(sequences), dropped)


def _sums(
    model: LanguageModel,
    sequences: Sequences,
    request: EvaluateRequest,
    on_progress: Callable[[Progress], None],
) -> list[tuple[float, float]]:
    """Return the sums of each sequence's log-probabilities and entropies, in order."""
    if not len(sequences):
        return []
    step = StepTensors.from_packed(sequences.unweighted())
    meter = Meter(
        len(step.lengths), sum(step.lengths), Passes(training=0, policy=1), on_progress,
        phase="evaluate", span=SPAN,
    )  # fmt: skip
    meter.begin()

    @torch.no_grad()
    def run(batches: Batches) -> list[tuple[float, float]]:
        meter.again()
        sums = torch.zeros(2, len(sequences), dtype=torch.float64, device=model.device)
        for rows in batches:
            batch = step.take(rows, model.device)
            both = model.logprobs(batch.inputs["tokens"], batch.predicts)
            for sum_s, values_n in zip(sums, both, strict=True):
                sum_s[rows] = batch.spread(values_n.double()).sum(dim=1)
            meter.add(len(rows), step.tokens_in(rows))
        return list(zip(*sums.tolist(), strict=True))

    try:
        most_tokens = min(request.micro_batch_tokens, model.most_tokens_at_once)
        return within_memory(step.lengths, most_tokens, run)
    except OneSequenceTooLarge as error:
        raise Final(
            f"CUDA out of memory with one sequence of {error.tokens} tokens: lower "
            f"MAX_SEQUENCE_TOKENS (now {request.max_sequence_tokens}), use a smaller BASE_MODEL or "
            "a larger GPU"
        ) from None
