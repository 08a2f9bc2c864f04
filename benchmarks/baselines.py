"""What others train of the same hours: upstream's two recipes, and ART's own way of stepping."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import torch

from babylon_tasks.records.steps import Call, Hyperparameters, Sample
from babylon_tasks.simulation.game.hour import Decision, Hour
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.step import TorchStep

ART_RATE = 5e-6  # the default of art 0.5.18's local backend

# One step over the whole window with plain GRPO and nothing that holds the model.
PLAIN = Hyperparameters(
    learning_rate=ART_RATE, warmup_steps=0, lora_rank=8, lora_alpha=16, kl_penalty=0.0,
    negative_scale=1.0, max_sequence_tokens=4096, micro_batch_tokens=16_384,
)  # fmt: skip


Runs = Mapping[str, Sequence[Decision]]  # an hour's decisions by trajectory id


def conversations(hour: Hour, runs: Runs, samples: Sequence[Sample]) -> list[Sample]:
    """Return upstream's simplified view: a conversation a run, with the outcomes told before it.

    Its turns are trained one by one, each with all before it as context. (Upstream writes them in
    a form that ART gives no weight; here they count.)
    """
    outcomes = ", ".join(
        f"{market.ticker} {'rose' if outcome.up else 'fell'}"
        for market, outcome in zip(hour.markets[:8], hour.outcomes, strict=False)
    )
    return _each(runs, samples, lambda decisions: _conversation(outcomes, decisions))


def state_lines(hour: Hour, runs: Runs, samples: Sequence[Sample]) -> list[Sample]:
    """Return upstream's original view: lines of the agent's state, each followed by its action."""
    return _each(runs, samples, _lines)


def _each(
    runs: Runs, samples: Sequence[Sample], calls_of: Callable[[Sequence[Decision]], list[Call]]
) -> list[Sample]:
    """Make each run's calls anew; what was done badly has no sample of its own there."""
    return [
        msgspec.structs.replace(sample, calls=calls_of(runs[sample.trajectory_id]))
        for sample in samples
        if all(call.ended is msgspec.UNSET for call in sample.calls)
    ]


def _conversation(outcomes: str, decisions: Sequence[Decision]) -> list[Call]:
    system = decisions[0].messages[0]["content"]
    turns = [{"role": "system", "content": f"{system} Outcomes: {outcomes}."}]
    calls = []
    for decision in decisions:
        turns = [*turns, decision.messages[1]]
        asked = msgspec.json.encode(turns).decode()
        calls.append(Call("", "", decision.answer.text, messages=asked))
        turns = [*turns, {"role": "assistant", "content": decision.answer.text}]
    return calls


def _lines(decisions: Sequence[Decision]) -> list[Call]:
    system, pnl, calls = decisions[0].messages[0]["content"], 0.0, []
    for decision in decisions:
        state = f"Balance: ${10_000 + pnl:.2f}, P&L: ${pnl:.2f}"
        calls.append(Call(system, state, decision.answer.text))
        pnl += decision.pnl
    return calls


@contextlib.contextmanager
def one_sequence_an_update() -> Iterator[None]:
    """Within it the trainer steps as ART's service does: an optimizer step for each sequence."""
    tokenize = TorchStep._tokenize

    def split(step: TorchStep, samples: list[Sample]) -> list[StepTensors]:
        return [one for part in tokenize(step, samples) for one in _rows(part)]

    TorchStep._tokenize = split  # type: ignore[method-assign]
    try:
        yield
    finally:
        TorchStep._tokenize = tokenize  # type: ignore[method-assign]


def _rows(part: StepTensors) -> Iterator[StepTensors]:
    for start, length in zip(part.starts, part.lengths, strict=True):
        tensors = {key: values[start : start + length] for key, values in part.tensors.items()}
        yield dataclasses.replace(
            part,
            tensors=tensors,
            starts=[0],
            lengths=[length],
            trained_tokens=int(tensors["assistant_mask"].sum().to(torch.int64)),
        )
