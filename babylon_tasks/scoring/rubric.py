"""The rubric: how the judge is to score."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from babylon_tasks.errors import UserError

_MAX_BYTES = 65_536

# The weights of upstream's trader: P&L 40, timing 30, risk 20, opportunity 10.
CRITERIA = {"profit": 0.4, "timing": 0.3, "risk": 0.2, "opportunity": 0.1}

_DEFAULT = """\
Score each trader's hour from 0 (worst) to 1 (best), in comparison with the others of the same hour.

- Profit, 40 %: the P&L at the end, seen against what the markets made possible.
- Timing, 30 %: entries before a price moved their way, exits before it turned.
- Risk, 20 %: sizes that fit the balance, no pile-up on one market, losses cut early.
- Opportunity, 10 %: the moves worth taking were found and taken, the others left alone.

Judge decisions by what could be known when they were made: a small loss while the market fell can
be worth more than a small gain while everything rose. Use the whole range; where two traders did
equally well, their scores should be equal."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """The text, and its weights by criterion, if they are known."""

    text: str
    criteria: dict[str, float] | None

    @property
    def hash(self) -> str:
        """The name of this text in `rl.judgments` and `reward_judgments`."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    def as_json(self) -> str:
        """Return the rubric in the app's form of criteria: the weights, if known, and the text."""
        return json.dumps({"rubric": self.hash, "criteria": self.criteria, "text": self.text})


def load_rubric(path: str | None) -> Rubric:
    """Return the rubric in a file, or upstream's if `path` is None.

    Raises:
        UserError: The file cannot be read, is empty, or is too long for a prompt.
    """
    if path is None:
        return Rubric(_DEFAULT, CRITERIA)
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)  # cut off, its last letter may be broken UTF-8
        text = "" if len(content) > _MAX_BYTES else content.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"JUDGE_RUBRIC={path} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise UserError(f"JUDGE_RUBRIC={path} is empty or longer than {_MAX_BYTES} bytes")
    return Rubric(text, None)
