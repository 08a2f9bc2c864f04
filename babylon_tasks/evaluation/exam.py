"""Asks a trainer what two versions make of the same runs, and for answers of their own."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from babylon_tasks.errors import BadWeights, CheckpointUnreadable, Final, UserError
from babylon_tasks.evaluation.figures import Answered, ExaminedRun, compare
from babylon_tasks.records.exams import Figures
from babylon_tasks.records.form import is_unusable
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Call, Progress, Sample, Trainer
from babylon_tasks.records.time_left import Span, share_of_whole
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    GenerateRequest,
    Generation,
    Likelihood,
)
from babylon_tasks.settings import Settings

log = logging.getLogger(__name__)

# A window may have thousands of calls; these tell enough, and cost less than training on them.
MOST_CALLS = 256
MOST_PROMPTS = 64
# An answer may be three times as long as the longest recorded one: longer ones are cut off.
_LONGER = 3
_LEAST_TOKENS, _MOST_TOKENS = 16, 1024
_SEED = 0
# The parts of an exam, as shares of it: what serves, then the candidate. By rule of thumb: answers
# are given token by token. A part that is left out is passed over.
_RUNS: tuple[Span, Span] = (0.0, 0.1), (0.1, 0.2)
_PROMPTS: tuple[Span, Span] = (0.2, 0.55), (0.55, 0.9)
_ANSWERS: tuple[Span, Span] = (0.9, 0.95), (0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Version:
    """A step and the local folder of its files; without a folder, the base model."""

    step: int
    folder: Path | None

    @property
    def checkpoint(self) -> str | None:
        """The folder as the trainer takes it."""
        return str(self.folder) if self.folder else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A recorded call whose prompt both versions are asked."""

    trajectory_id: str
    call: Call


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both versions' answers to one prompt."""

    asked: Asked
    served: Generation
    candidate: Generation


@dataclass(frozen=True, slots=True)
class Examiner:
    """Asks a trainer; `scratch` is a folder of this exam.

    `on_beat` is called as `Trainer.evaluate` calls it, with the share of the whole exam.
    `well_formed` tells it of an answer's text.
    """

    trainer: Trainer
    settings: Settings
    lineage: Lineage
    base_revision: str | None
    well_formed: Callable[[str], bool]
    scratch: Path
    on_beat: Callable[[Progress | None], None]

    def compare(self, samples: Sequence[Sample], served: Version, candidate: Version) -> Figures:
        """Return the figures of both versions over these samples, or over a part of many.

        Of a lineage at W&B only the sampled answers are known.

        Raises:
            BadWeights: Nothing can be computed with the candidate's files.
            UserError: The same of the version that serves; or the trainer cannot be asked.
            TrainerDied, Final: As `Trainer.evaluate` does.
        """
        samples = some_of(samples)
        runs: list[ExaminedRun] = []
        room = _MOST_TOKENS
        if self._knows_likelihoods:
            runs, longest = self._runs(samples, served, candidate)
            room = min(_MOST_TOKENS, max(_LEAST_TOKENS, _LONGER * longest))
        asked = prompts_of(samples)
        pairs = self._pairs(asked, room, served, candidate)
        answers = [self._answered(pair) for pair in pairs]
        if self._knows_likelihoods:
            answers = self._with_logprobs(pairs, answers, served, candidate)
        return compare(runs, [each[0] for each in answers], [each[1] for each in answers])

    @property
    def _knows_likelihoods(self) -> bool:
        """W&B does not say how likely a given answer is."""
        return self.settings.trainer != "serverless"

    def _beats(self, part: Span) -> Callable[[Progress | None], None]:
        """Pass on the signs of life of a request, with the share of the whole exam."""

        def on_beat(progress: Progress | None) -> None:
            if progress is not None and progress.share is not None:
                share = share_of_whole(part, progress.share)
                progress = msgspec.structs.replace(progress, share=share)
            self.on_beat(progress)

        return on_beat

    def _runs(
        self, samples: Sequence[Sample], served: Version, candidate: Version
    ) -> tuple[list[ExaminedRun], int]:
        """Return the runs that both can be asked about, and the tokens of the longest answer."""
        path = self._write("runs.jsonl", samples)
        theirs = self._likelihoods(served, path, _RUNS[0])
        ours = self._likelihoods(candidate, path, _RUNS[1], is_candidate=True)
        runs, longest = [], 0
        for sample, one, other in zip(samples, theirs, ours, strict=True):
            if not one.tokens:
                continue
            longest = max(longest, -(-one.tokens // len(sample.calls)))
            runs.append(
                ExaminedRun(
                    trajectory_id=sample.trajectory_id,
                    window_id=sample.window_id,
                    reward=sample.reward,
                    tokens=one.tokens,
                    served_logprob=one.logprob,
                    candidate_logprob=other.logprob,
                    recorded_logprob=_recorded(sample, one.tokens),
                    served_entropy=one.entropy,
                    candidate_entropy=other.entropy,
                    calls=len(sample.calls),
                    badly=any(call.ended is not msgspec.UNSET for call in sample.calls),
                )
            )
        return runs, longest

    def _pairs(
        self, asked: Sequence[Asked], room: int, served: Version, candidate: Version
    ) -> list[_Pair]:
        """Ask both for an answer to each prompt, with the same luck."""
        theirs = self._generate(served, asked, room, _PROMPTS[0])
        ours = self._generate(candidate, asked, room, _PROMPTS[1])
        return [
            _Pair(each, one, other)
            for each, one, other in zip(asked, theirs, ours, strict=True)
            if one is not None and other is not None
        ]

    def _answered(self, pair: _Pair) -> tuple[Answered, Answered]:
        self.on_beat(None)  # a deployment's check may take its time
        trajectory_id = pair.asked.trajectory_id
        return self._read(trajectory_id, pair.served), self._read(trajectory_id, pair.candidate)

    def _read(self, trajectory_id: str, answer: Generation) -> Answered:
        formed, ended = self.well_formed(answer.text), answer.finish_reason == "stop"
        return Answered(
            trajectory_id=trajectory_id,
            well_formed=ended and formed,
            unusable=is_unusable(answer.text, lambda _: formed),
            tokens=len(answer.token_ids) or len(answer.logprobs),  # W&B may tell either
            ended=ended,
        )

    def _with_logprobs(
        self,
        pairs: Sequence[_Pair],
        answers: Sequence[tuple[Answered, Answered]],
        served: Version,
        candidate: Version,
    ) -> list[tuple[Answered, Answered]]:
        """Add what both think of the candidate's answers: its distance from what serves."""
        path = self._write("answers.jsonl", [_as_sample(pair) for pair in pairs])
        theirs = self._likelihoods(served, path, _ANSWERS[0])
        ours = self._likelihoods(candidate, path, _ANSWERS[1], is_candidate=True)
        return [
            (
                one,
                replace(other, served_logprob=b.logprob, candidate_logprob=a.logprob)
                if a.tokens
                else other,
            )
            for (one, other), a, b in zip(answers, ours, theirs, strict=True)
        ]

    def _write(self, name: str, samples: Sequence[Sample]) -> Path:
        path = self.scratch / name
        path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in samples))
        return path

    def _likelihoods(
        self, version: Version, path: Path, part: Span, *, is_candidate: bool = False
    ) -> list[Likelihood]:
        request = EvaluateRequest(
            model_name=self.lineage.name,
            base_model=self.lineage.base_model,
            checkpoint=version.checkpoint,
            samples_path=str(path),
            max_sequence_tokens=self.settings.max_sequence_tokens,
            micro_batch_tokens=self.settings.micro_batch_tokens,
            base_revision=self.base_revision,
        )
        try:
            return self.trainer.evaluate(request, self._beats(part)).trajectories
        except BadWeights as error:
            if is_candidate:
                raise
            raise _cannot_serve(version, error) from error

    def _generate(
        self, version: Version, asked: Sequence[Asked], room: int, part: Span
    ) -> list[Generation | None]:
        """Return an answer to each prompt; None where the model cannot be shown it."""
        if not asked:
            return []
        tools = [each.call.shown_tools() for each in asked]
        request = GenerateRequest(
            model_name=self.lineage.name,
            base_model=self.lineage.base_model,
            checkpoint=version.checkpoint,
            prompts=[each.call.prompt() for each in asked],
            max_tokens=room,
            temperature=1.0,
            seed=_SEED,
            base_revision=self.base_revision,
            tools=tools if any(tools) else [],
            remote_url=None if self._knows_likelihoods else self.settings.serverless_url,
        )
        try:
            answers = self.trainer.generate(request, self._beats(part)).generations
        except (CheckpointUnreadable, Final) as error:
            if self._knows_likelihoods or isinstance(error, BadWeights):
                raise
            log.warning("step %d gives no answers for its exam: %s", version.step, error)
            return [None] * len(asked)  # W&B may serve no base model
        return [each[0] if each else None for each in answers]


def some_of(samples: Sequence[Sample]) -> list[Sample]:
    """Return whole runs with at most `MOST_CALLS` calls, in the same order; always the same ones.

    A run that alone has more is shortened.
    """
    left, chosen = MOST_CALLS, set[int]()
    for number in sorted(range(len(samples)), key=lambda n: _luck(samples[n].trajectory_id)):
        if left > 0:
            chosen.add(number)
            left -= len(samples[number].calls)
    return [
        msgspec.structs.replace(sample, calls=sample.calls[:MOST_CALLS])
        for number, sample in enumerate(samples)
        if number in chosen
    ]


def prompts_of(samples: Sequence[Sample]) -> list[Asked]:
    """Return at most `MOST_PROMPTS` calls to ask again: of every run one before any has two."""
    turns = sorted(samples, key=lambda sample: _luck(sample.trajectory_id))
    rounds = itertools.zip_longest(*(sample.calls for sample in turns))
    asked = (
        Asked(sample.trajectory_id, call)
        for each in rounds
        for sample, call in zip(turns, each, strict=True)
        if call is not None
    )
    return list(itertools.islice(asked, MOST_PROMPTS))


def _luck(trajectory_id: str) -> bytes:
    return hashlib.blake2b(trajectory_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _recorded(sample: Sample, tokens: int) -> float | None:
    """Return what the policy that answered thought of the run; None where not all is recorded."""
    recorded = [call.logprobs for call in sample.calls]
    values = [value for each in recorded if each for value in each.values]
    return math.fsum(values) if all(recorded) and len(values) == tokens else None


def _as_sample(pair: _Pair) -> Sample:
    one, call = pair.candidate, pair.asked.call
    answer = msgspec.structs.replace(
        call, response=one.text, logprobs=None, ended=one.finish_reason == "stop"
    )
    return Sample("exam", pair.asked.trajectory_id, 0.0, [answer])


def _cannot_serve(version: Version, error: BadWeights) -> UserError:
    return UserError(
        f"step {version.step} serves, and no other can be compared with it: {error}; "
        "`babylon models rollback` serves an older one"
    )
