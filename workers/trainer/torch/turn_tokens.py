"""The tokens of recorded calls: those of the prompt, as a server has them, and what follows them.

An answer is encoded together with the end of its prompt, and cut there: SentencePiece begins a text
with a space, which no answer has after its prompt. No text of an answer becomes a control token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from workers.trainer.torch.assistant_turn import ANSWER, AssistantTurn, Turn, find_end

_TAIL = 400  # characters of a prompt in which its last control token is looked for

# Texts after which the tokens of another text are those that it has after a prompt.
_ANCHORS = ("\n", "a", ".")

_BYTE = re.compile("<0x[0-9A-F]{2}>")

_MOST_PIECES = 1000  # an answer with more control marks is no answer


class Encoded(NamedTuple):
    """A call as tokens; `trained` is the answer, with what leads to it and its end."""

    prompt: list[int]
    trained: list[int]


class TurnTokens:
    """Encodes turns of one template with one tokenizer.

    Args:
        tokenizer: Of transformers.
        turn: What its template writes around an answer.
        stops: Tokens where servers stop.

    Raises:
        ValueError: No token would end an answer.
    """

    def __init__(self, tokenizer: Any, turn: AssistantTurn, stops: frozenset[int]) -> None:
        self._tokenizer, self._turn = tokenizer, turn
        stops |= {tokenizer.eos_token_id} - {None}
        end = find_end(tokenizer, turn, stops)
        if end is None:
            raise ValueError("no token would end an answer (the tokenizer has no eos_token)")
        self._end, self.end_ids = end
        one, two, both = self.encode(["\n", "x", "\nx"])
        self._apart_is_right = one + two == both
        self._find_control(stops)
        found = self._after(ANSWER, self._end)
        if found[-1:] == self.end_ids[-1:]:
            self.end_ids = found

    def _find_control(self, stops: frozenset[int]) -> None:
        """Find the tokens that templates write around messages: no text may become one of them."""
        tokenizer, thoughts = self._tokenizer, self._turn.thoughts
        added = tokenizer.added_tokens_decoder
        used = {*tokenizer.all_special_ids, *stops, *self.encode([self._turn.scaffold])[0]}
        marks = {
            i: token.content
            for i, token in added.items()
            if token.content.strip()
            and (token.special or i in used or (thoughts and token.content in thoughts))
        }
        texts = sorted(marks.values(), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        # What a tokenizer does not know becomes one of these, in a server too.
        unknown = {i for i, text in marks.items() if _BYTE.fullmatch(text)}
        self.control_ids = marks.keys() - unknown - {tokenizer.unk_token_id}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, nothing added."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def of(self, turns: Sequence[Turn]) -> list[Encoded | None]:
        """Return the tokens of each turn; None where its text cannot but become control tokens."""
        prompts = self.encode([turn.prompt for turn in turns])
        tails = [self._tail(turn.prompt) for turn in turns]
        different = [*dict.fromkeys(tails)]  # few: most prompts end alike
        tail_ids = dict(zip(different, self.encode(different), strict=True))
        together = self.encode(
            [
                tail + turn.thought + turn.lead + turn.answer + self._end
                for tail, turn in zip(tails, turns, strict=True)
            ]
        )
        return [
            self._one(turn, prompt, tail_ids[tail], ids)
            for turn, prompt, tail, ids in zip(turns, prompts, tails, together, strict=True)
        ]

    def _one(
        self, turn: Turn, prompt: list[int], tail: list[int], together: list[int]
    ) -> Encoded | None:
        trained = together[len(tail) :]
        fits = together[: len(tail)] == tail == prompt[len(prompt) - len(tail) :]
        ends = trained[-1:] == self.end_ids[-1:]
        if not (fits and ends and self._is_text(turn, trained)) or self._has_marks(turn):
            trained = self._apart(turn)
            if not trained or not self._is_text(turn, trained):
                return None
        return Encoded(prompt, trained)

    def _has_marks(self, turn: Turn) -> bool:
        return bool(self._marks.search(turn.thought) or self._marks.search(turn.answer))

    def _is_text(self, turn: Turn, trained: list[int]) -> bool:
        """Tell whether no other control tokens are in it than the template writes."""
        written = len(self._marks.findall(turn.lead)) + sum(map(self._control, self.end_ids))
        return sum(map(self._control, trained)) == written

    def _control(self, token_id: int) -> bool:
        return token_id in self.control_ids

    def _tail(self, prompt: str) -> str:
        """Return the prompt from its last control token on; what is before has no effect after."""
        marks = [*self._marks.finditer(prompt, max(0, len(prompt) - _TAIL))]
        return prompt[marks[-1].start() :] if marks else prompt

    def _apart(self, turn: Turn) -> list[int]:
        """Encode in pieces: a token would cross the border, or the text holds control marks."""
        first, *others = itertools.islice(self._pieces(turn.answer), _MOST_PIECES)
        pieces = [*itertools.islice(self._pieces(turn.thought), _MOST_PIECES)]
        if len(others) + 1 >= _MOST_PIECES or len(pieces) >= _MOST_PIECES:
            return []
        pieces += [turn.lead + first, *others]
        ids: list[int] = []
        before = self._tail(turn.prompt)
        for piece in filter(None, pieces):
            ids += self._after(before, piece)
            before = ""
        return ids + self.end_ids

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut every control mark behind its first character."""
        begin = at = 0
        while mark := self._marks.search(text, at):
            at = mark.start() + 1
            yield text[begin:at]
            begin = at
        yield text[begin:]

    def _after(self, before: str, text: str) -> list[int]:
        """Return the tokens of a text as they follow another, whose own stay as they are."""
        anchors = [before, *(() if self._apart_is_right else _ANCHORS)]
        for anchor in filter(None, anchors):
            alone, together = self.encode([anchor, anchor + text])
            if together[: len(alone)] == alone:
                return together[len(alone) :]
        return self.encode([text])[0]

    def visible(self, token_ids: list[int]) -> str:
        """Return what a user sees of an answer: no thought, and no channel's name."""
        lead, thoughts = self._turn.lead, self._turn.thoughts
        if self._marks.search(lead):
            ids = self._after(self._tail(self._turn.prompt), lead)
            for at in reversed(range(len(token_ids) - len(ids) + 1)):
                if token_ids[at : at + len(ids)] == ids:
                    token_ids = token_ids[at + len(ids) :]
                    break
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        if thoughts and thoughts.end in lead:
            text = thoughts.cut(text)[1]
        return text.removeprefix(lead) if lead.isspace() else text
