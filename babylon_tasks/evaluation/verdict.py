"""The verdict of an exam: may the candidate serve?

It may if no guard is worse. A guard is a figure with a rule; the numbers of the rules are below,
each with its reason. Intervals are of 95 % and only one side of them fails, so a guard refuses
about one in forty of the candidates that are neither better nor worse by it, and fewer of better
ones.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from babylon_tasks.records.exams import Compared, ExamState, Figures

# In scores, of value and lift: a smaller loss, however certain, is none that anybody could see; two
# copies of one version that differ by rounding have it.
LEAST_WORSE = 0.001
# A loss of form above this share counts even if its interval has 0 in it: honest steps lost 0.03 at
# most (580 steps of docs/learning.md). In more than three answers: two or three are luck, also of
# versions that both lose one in ten.
MOST_LOST = 0.15
MOST_ANSWERS_LOST = 3
# Up to this a loss is let pass, however certain: it is what an honest step may lose, and win back.
LEAST_LOST = 0.03
# A step moves the mean answer by 0.2 nats at most (MAX_POLICY_CHANGE): 0.05 nats a token where
# answers have four. Ten unpublished steps in one direction come to this.
MOST_KL = 0.5
# Judges like long answers, and each costs its tokens; a step of the size above changes the mean
# length by a tenth. Short answers are cheaper, and half of the tokens are not a reason given less.
LONGEST = 1.25  # times the served version's
SHORTEST = 0.5

_Guard = Callable[[Compared], str | None]


def judge(figures: Figures) -> tuple[ExamState, str, Figures]:
    """Return whether the candidate may serve, why in one sentence, and the figures with `worse`."""
    said = {name: guard(figures[name]) for name, guard in GUARDS.items() if name in figures}
    marked = {
        name: replace(figure, worse=said.get(name) is not None) for name, figure in figures.items()
    }
    if failed := [each for each in said.values() if each]:
        return ExamState.FAILED, "; ".join(failed), marked
    left_out = [name for name in GUARDS if name not in figures or figures[name].left_out]
    reason = "no figure is worse"
    if left_out:
        reason += f"; left out: {', '.join(left_out)}"
    return ExamState.PASSED, reason, marked


def _is_worse(figure: Compared) -> bool:
    lost = -(figure.difference or 0.0)
    return figure.high is not None and figure.high < 0 and lost > LEAST_WORSE


def _reward(what: str) -> _Guard:
    def guard(figure: Compared) -> str | None:
        if not _is_worse(figure):
            return None
        return f"{_moved(what, figure)} ({figure.runs} runs, {_bounds(figure)})"

    return guard


def _lift(figure: Compared) -> str | None:
    if not _is_worse(figure):
        return None
    return (
        f"better runs became less likely than worse ones, lift {_number(figure.difference or 0.0)} "
        f"({figure.runs} runs, {_bounds(figure)})"
    )


def _padding(figure: Compared) -> str | None:
    # With an interval the scores follow the length for certain. Then there is nothing to believe in
    # them, and a step that seems to answer longer fails before that is certain too.
    if figure.low is None or (figure.difference or 0.0) <= 0:
        return None
    return (
        f"longer answers became likelier, and the scores follow the length: padding "
        f"{_number(figure.difference or 0.0)} ({figure.runs} runs, {_bounds(figure)})"
    )


def _form(figure: Compared) -> str | None:
    lost = -(figure.difference or 0.0)
    certain = figure.high is not None and figure.high < 0
    return _of_answers("form", figure, lost, certain)


def _unusable(figure: Compared) -> str | None:
    lost = figure.difference or 0.0
    certain = figure.low is not None and figure.low > 0
    return _of_answers("share of unusable answers", figure, lost, certain)


def _of_answers(what: str, figure: Compared, lost: float, certain: bool) -> str | None:
    """Say how a share of the answers got worse by `lost`, or nothing."""
    answers = round(lost * (figure.samples or 0))
    if not (certain and lost > LEAST_LOST) and not (
        lost > MOST_LOST and answers > MOST_ANSWERS_LOST
    ):
        return None
    return f"{_moved(what, figure)} ({_answers(figure)}{_bounds(figure, ', ')})"


def _kl(figure: Compared) -> str | None:
    if figure.low is None or figure.low <= MOST_KL:
        return None
    return (
        f"KL to the served version is {_number(figure.difference or 0.0)} nats a token "
        f"({_answers(figure)}, {_bounds(figure)}; {MOST_KL} may be)"
    )


def _length(figure: Compared) -> str | None:
    if figure.served is None or figure.low is None or figure.high is None:
        return None
    longer = figure.low > (LONGEST - 1) * figure.served
    shorter = figure.high < (SHORTEST - 1) * figure.served
    if not longer and not shorter:
        return None
    return f"{_moved('length', figure)} tokens ({_answers(figure)}, {_bounds(figure)})"


GUARDS: dict[str, _Guard] = {
    "value": _reward("value"),
    "lift": _lift,
    "ranking": _reward("ranking"),
    "padding": _padding,
    "form": _form,
    "unusable": _unusable,
    "kl": _kl,
    "length": _length,
}


def _moved(what: str, figure: Compared) -> str:
    before, after = figure.served or 0.0, figure.candidate or 0.0
    way = "fell" if after < before else "rose"
    return f"{what} {way} from {_number(before)} to {_number(after)}"


def _answers(figure: Compared) -> str:
    return f"{figure.samples or 0:.0f} answers"


def _bounds(figure: Compared, before: str = "") -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{before}{_number(figure.low)} to {_number(figure.high)}"


def _number(number: float) -> str:
    size = abs(number)
    if size >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if size >= 10 else f"{number:.2f}" if size >= 0.1 else f"{number:.2g}"
