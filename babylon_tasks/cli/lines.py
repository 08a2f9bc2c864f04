"""Lines and words that several screens have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from babylon_tasks.cli.screen import Line


def gate_lines(publish: str, sentences: Sequence[str]) -> Iterator[Line]:
    """Write PUBLISH, and what `cockpit.gate.sentences` says below it."""
    yield Line("gate", f"PUBLISH={publish}")
    for sentence in sentences:
        yield Line("", sentence, bad=sentence.startswith("paused "))


def tokens_line(
    context_tokens: float | None,
    trained_tokens: int,
    per_second: float | None,
    mfu: float | None,
    gpu_seconds: float,
) -> Line:
    """Write the tokens of a step, and how fast it was; of a CPU without MFU."""
    context = "" if context_tokens is None else f"{context_tokens:,.0f} context tokens, "
    rate = "" if per_second is None else f"; {per_second:,.0f} context tokens a second of computing"
    peak = f"; {mfu:.1%} of the GPU's peak rate (MFU)" if mfu is not None and gpu_seconds else ""
    return Line("tokens", f"{context}{trained_tokens:,} trained tokens{rate}{peak}")
