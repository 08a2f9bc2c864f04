"""How a model's tokenizer writes a conversation: the prompt before an answer, the end after it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line
from workers.trainer.torch.assistant_turn import (
    ANSWER,
    PROBED_AT,
    SYSTEM,
    USER,
    AssistantTurn,
    NotTheSame,
    Turn,
    shows,
)
from workers.trainer.torch.model_facts import ModelFacts
from workers.trainer.torch.template import Messages, Template
from workers.trainer.torch.thoughts import thoughts_of
from workers.trainer.torch.turn_tokens import Encoded, TurnTokens


class ChatFormat:
    """One tokenizer's chat template, used the same way in training and in serving.

    The prompt is the template's generation prompt: what a server shows the model. What is trained
    goes on from exactly its tokens, and is what the template writes of the whole conversation.

    Args:
        tokenizer: Of transformers.
        base_model: For messages.
        facts: Of the model: where servers stop, how many tokens and positions it knows.

    Raises:
        UserError: The tokenizer has no chat template; one that leaves out what an agent saw; one
            that writes an answer otherwise than a server has the model write it; or more tokens
            than the model.
    """

    def __init__(self, tokenizer: Any, base_model: str, facts: ModelFacts | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):  # Mistral's own has no such thing
            raise UserError(
                f"the tokenizer of BASE_MODEL={base_model} has no chat template: "
                "choose an instruction-tuned model"
            )
        self.facts = facts or ModelFacts()
        self.tokenizer = tokenizer
        self._template = Template(tokenizer)
        self._check_roles(base_model)
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        try:
            self._turn = AssistantTurn(self._template, thoughts_of(self._template.source, added))
            self._tokens = TurnTokens(tokenizer, self._turn, self.facts.stops)
        except (NotTheSame, jinja2.TemplateError, ValueError) as error:
            raise UserError(
                f"the chat template of BASE_MODEL={base_model} cannot be trained on "
                f"({one_line(str(error), 200)}): choose another model"
            ) from None
        self.lead = self._turn.lead
        self.end_ids = self._tokens.end_ids
        self.end = tokenizer.decode(self.end_ids[-1:])
        self.stops = {*self.facts.stops, *self.end_ids[-1:], tokenizer.eos_token_id} - {None}
        self.facts.require_vocabulary(tokenizer, base_model)

    def prompt(
        self, messages: Messages, at: datetime | None = None, tools: list[Any] | None = None
    ) -> str:
        """Return the text that the model is shown before it answers.

        `at` is what the template's clock says; None: now.

        Raises:
            jinja2.TemplateError: The template refuses these messages.
        """
        return self._template.render(messages, generation_prompt=True, at=at, tools=tools)

    def turn(
        self,
        messages: Messages,
        response: str,
        at: datetime | None = None,
        tools: list[Any] | None = None,
    ) -> Turn:
        """Return a recorded call as the template writes it.

        A thought before the answer is kept where the prompt opens one, and left out elsewhere.

        Raises:
            jinja2.TemplateError: The template refuses these messages, or leaves some out.
            NotTheSame: It rewrites the answer.
        """
        prompt = self.prompt(messages, at, tools)
        if not shows(prompt, messages):
            raise jinja2.TemplateError("it leaves messages out")
        answer = {"role": "assistant", "content": self._turn.answer_only(response)}
        whole = self._template.render([*messages, answer], False, at, tools)
        return self._turn.of(prompt, whole, response)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, nothing added."""
        return self._tokens.encode(texts)

    def encode_turns(self, turns: Sequence[Turn]) -> list[Encoded | None]:
        """Return the tokens of each turn; None where its text cannot but become control tokens."""
        return self._tokens.of(turns)

    def visible(self, token_ids: list[int]) -> str:
        """Return what a user sees of a generated answer: no thought, and no channel's name."""
        return self._tokens.visible(token_ids)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Return what each token adds to the text: a character of many tokens is the last one's."""
        texts, shown = [], ""
        for end in range(1, len(token_ids) + 1):
            text = self.tokenizer.decode(token_ids[:end], skip_special_tokens=False)
            text = text.rstrip("\ufffd")  # the first bytes of a character
            texts.append(text[len(shown) :])
            shown = max(shown, text, key=len)
        return texts

    def _check_roles(self, base_model: str) -> None:
        """Refuse a template that takes no system message: some refuse it, others pass over it."""
        turns = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": USER},
            {"role": "assistant", "content": ANSWER},
        ]
        for turn in (turns[1:], turns):
            role = turn[0]["role"]
            asked, answer = turn[:-1], turn[-1]
            try:
                prompt = self.prompt(asked, PROBED_AT)
                whole = self._template.render(turn, False, PROBED_AT)
                kept = all(m["content"] in prompt for m in asked) and answer["content"] in whole
                reason = "it leaves messages out"
            except jinja2.TemplateError as error:
                kept, reason = False, one_line(f"{type(error).__name__}: {error}", 200)
            if not kept:
                raise UserError(
                    f"the chat template of BASE_MODEL={base_model} has no {role} role ({reason}): "
                    "choose an instruction-tuned model whose template has it"
                )
