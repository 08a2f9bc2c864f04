"""What a chat template writes around an assistant's answer, found by trying it.

A server shows the prompt, say `…<|im_start|>assistant` and a line break. The model's own tokens are
a lead (empty in most), the answer, and the end, `<|im_end|>`. What the template writes after the
end is left out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jinja2

from workers.trainer.torch.template import Messages, Template
from workers.trainer.torch.thoughts import Thoughts

SYSTEM, USER, ANSWER = "SYSTEM-GOES-HERE", "USER-GOES-HERE", "RESPONSE-GOES-HERE"
_NEXT = "NEXT-GOES-HERE"
_MOST_HEADERS = 100  # that are tried as the one before the answer
PROBED_AT = datetime(2025, 1, 1, tzinfo=UTC)  # a clock that goes on would seem to be a difference


class NotTheSame(Exception):
    """The template writes an answer in another place than where a server has the model write it."""


class Turn(NamedTuple):
    """One call: what a server shows, what the model writes first, and the answer."""

    prompt: str
    thought: str
    lead: str
    answer: str


class AssistantTurn:
    """The form of an assistant's turn in one template.

    `lead` is what the model writes before its answer: nothing in most; the channel's name in
    GPT-OSS; the end of an empty thought where the prompt opens one. `after` follows the answer, and
    `next` stands between it and the next question. `scaffold` holds all that the template writes.

    Raises:
        NotTheSame: The template has no such form; the message says why.
        jinja2.TemplateError: It takes no conversation.
    """

    def __init__(self, template: Template, thoughts: Thoughts | None) -> None:
        self._template, self.thoughts = template, thoughts
        asked = [{"role": "user", "content": USER}]
        turn = [*asked, {"role": "assistant", "content": ANSWER}]
        prompt = template.render(asked, generation_prompt=True, at=PROBED_AT)
        bare = template.render(asked, generation_prompt=False, at=PROBED_AT)
        whole = template.render(turn, generation_prompt=False, at=PROBED_AT)
        stem = prompt if whole.startswith(prompt) else _common(prompt, whole)
        self._opening = prompt[len(stem) :]  # of a thought, which the template leaves out later
        self._before, _, self.after = whole[len(stem) :].rpartition(ANSWER)
        header = stem[len(bare) :] if stem.startswith(bare) else ""
        # Where nothing else begins a turn, what ends the question does: `[/INST]`.
        self._header = header or stem.rpartition(USER)[2].strip()
        self._check(prompt == bare)
        self._close = self._close_thought(prompt)
        self.prompt = prompt
        self.lead = self._close + self._before
        self.next = self._next(turn)
        self.scaffold = whole + self.next + prompt

    def _check(self, opens_no_turn: bool) -> None:
        if self._opening.strip() and not (self.thoughts and self.thoughts.only(self._opening)):
            raise NotTheSame(
                f"its prompt ends with {self._opening!r}, which it does not write before an answer"
            )
        if opens_no_turn and self._before.strip():
            raise NotTheSame("it knows no generation prompt")

    def _close_thought(self, prompt: str) -> str:
        """Return what ends the thought that the prompt left open, if the template does not."""
        thoughts = self.thoughts
        if thoughts is None or thoughts.end in self._before:
            return ""
        if not prompt.rstrip().endswith(thoughts.begin):
            return ""
        return f"\n{thoughts.end}\n\n" if prompt.endswith("\n") else f"{thoughts.end}\n\n"

    def _next(self, turn: list[dict[str, str]]) -> str:
        """Return what stands between an answer and the next question."""
        longer = [*turn, {"role": "user", "content": _NEXT}]
        try:
            whole = self._template.render(longer, generation_prompt=False, at=PROBED_AT)
        except jinja2.TemplateError:
            return ""
        return whole.rpartition(ANSWER)[2].partition(_NEXT)[0]

    def of(self, prompt: str, whole: str, response: str) -> Turn:
        """Take a conversation apart.

        Args:
            prompt: The conversation before the answer, with the generation prompt.
            whole: The conversation with the answer, as `answer_only` gives it.
            response: The recorded answer.

        Raises:
            NotTheSame: The template rewrites this answer.
        """
        thought, answer = self._split(response)
        opened = not whole.startswith(prompt)
        stem = prompt.removesuffix(self._opening) if opened else prompt
        goes_on = whole.startswith(stem)
        for rest in [whole[len(stem) :]] if goes_on else self._after_header(stem, whole):
            written = rest.removeprefix(self._before).removesuffix(self.after)
            same = written.strip() == answer.strip()
            if same and self._before + written + self.after == rest:
                break
        else:
            raise NotTheSame("it rewrites the answer")
        close = self._close if opened or not self._opening else ""
        lead = close + self._before
        if self.thoughts is None or not lead.lstrip().startswith(self.thoughts.end):
            thought = ""  # the model is not asked to think
        return Turn(prompt, thought, lead, written)

    def _after_header(self, stem: str, whole: str) -> list[str]:
        """Return what follows each header in a conversation; the answer may hold one as well.

        With the answer, the template writes earlier turns otherwise than before it.
        """
        if not self._header or not stem.rstrip().endswith(self._header.rstrip()):
            raise NotTheSame("the prompt is no part of the conversation")
        _, *parts = whole.split(self._header)
        rests = [self._header.join(parts[n:]) for n in range(len(parts))]
        return rests[-_MOST_HEADERS:]

    def answer_only(self, response: str) -> str:
        """Return a recorded answer without the thought before it."""
        return self._split(response)[1]

    def _split(self, response: str) -> tuple[str, str]:
        return self.thoughts.cut(response) if self.thoughts else ("", response)


def _common(one: str, other: str) -> str:
    """Return what both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in pairs)


def shows(prompt: str, messages: Messages) -> bool:
    """Tell whether a prompt holds what the messages say; templates pass over roles they lack.

    The system message before others may be edited: SmolLM3 takes its switches out.
    """
    parts = []
    for number, message in enumerate(messages):
        first_of_several = number == 0 and len(messages) > 1 and message.get("role") == "system"
        if message.get("role") != "assistant" and not first_of_several:
            parts.append(str(message.get("content") or "").strip())
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            parts.append(str(function.get("name")) if isinstance(function, dict) else str(call))
    return all(
        part in prompt or json.dumps(part, ensure_ascii=False)[1:-1] in prompt for part in parts
    )


def find_end(
    tokenizer: Any, turn: AssistantTurn, stops: Collection[int]
) -> tuple[str, list[int]] | None:
    """Return the text that ends an answer, and its tokens; None: nothing would end it.

    The first stop of what the template writes after an answer, e.g. `<|im_end|>`; without one, its
    first control token. Where it writes none: the token that begins the next turn, if servers stop
    at it (GLM-4), else the end-of-text token (Alpaca).
    """
    added = tokenizer.added_tokens_decoder
    after = _ids(tokenizer, turn.after)
    marks = [i for i in after if i in added and added[i].content.strip()]
    ends = [i for i in marks if i in stops] or marks
    if ends:
        mark = _text(tokenizer, ends[0])
        before, found, _ = turn.after.partition(mark)
        if found:
            return before + mark, after[: after.index(ends[0]) + 1]
    upcoming = _ids(tokenizer, turn.next.strip())[:1]
    ends = [i for i in upcoming if i in stops and i in added]
    ends = ends or [i for i in (tokenizer.eos_token_id, *sorted(stops)) if i is not None]
    if not ends:
        return None
    end = turn.after.rstrip() + _text(tokenizer, ends[0])
    return end, [*_ids(tokenizer, turn.after.rstrip()), ends[0]]


def _text(tokenizer: Any, token_id: int) -> str:
    added = tokenizer.added_tokens_decoder.get(token_id)
    return added.content if added else str(tokenizer.convert_ids_to_tokens(token_id))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
