"""How a model's tokenizer writes a conversation: the prompt before an answer, the end after it."""

from __future__ import annotations

import json
from typing import Any

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line

_SYSTEM, _USER, _RESPONSE = "SYSTEM-GOES-HERE", "USER-GOES-HERE", "RESPONSE-GOES-HERE"


class ChatFormat:
    """One tokenizer's chat template, used the same way in training and in serving.

    The prompt is the template's generation prompt: what a server shows the model. As in ART,
    thinking is switched off where the template knows the switch.

    Raises:
        UserError: The tokenizer has no chat template, or one that leaves out what an agent saw.
    """

    def __init__(self, tokenizer: Any, base_model: str) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of BASE_MODEL={base_model} has no chat template: "
                "choose an instruction-tuned model"
            )
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {}
        if isinstance(tokenizer.chat_template, str):
            if "enable_thinking" in tokenizer.chat_template:
                self._options["enable_thinking"] = False
            if "preserve_thinking" in tokenizer.chat_template:
                self._options["preserve_thinking"] = True
        self._check_roles(base_model)
        self.end_ids = self._find_end()

    def prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """Return the text that the model is shown before it answers.

        Raises:
            jinja2.TemplateError: The template refuses these messages.
        """
        text: str = self._tokenizer.apply_chat_template(
            [_with_objects(message) for message in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            **self._options,
        )
        return text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, nothing added."""
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _check_roles(self, base_model: str) -> None:
        """Refuse a template that takes no system message: some refuse it, others pass over it."""
        turns = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _RESPONSE},
        ]
        for turn in (turns[1:], turns):
            role = turn[0]["role"]
            asked, answer = turn[:-1], turn[-1]
            try:
                prompt = self.prompt(asked)
                whole = self._tokenizer.apply_chat_template(turn, tokenize=False, **self._options)
                kept = all(m["content"] in prompt for m in asked) and answer["content"] in whole
                reason = "it leaves messages out"
            except Exception as error:  # noqa: BLE001 - a template is a program of others
                kept, reason = False, one_line(f"{type(error).__name__}: {error}", 200)
            if not kept:
                raise UserError(
                    f"the chat template of BASE_MODEL={base_model} has no {role} role ({reason}): "
                    "choose an instruction-tuned model whose template has it"
                )

    def _find_end(self) -> list[int]:
        """Return the tokens that end an assistant's turn, e.g. `<|im_end|>` without line break."""
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _RESPONSE}]
        text: str = self._tokenizer.apply_chat_template(turn, tokenize=False, **self._options)
        after = text.rpartition(_RESPONSE)[2]
        ids = self.encode([after])[0]
        ends = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        for position, token_id in enumerate(ids):
            if token_id in ends:
                return ids[: position + 1]
        return self.encode([after.rstrip()])[0]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its tool calls' arguments as objects, as servers give them."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(arguments)}}
        for call in message["tool_calls"]
        for arguments in (call["function"]["arguments"],)
    ]
    return {**message, "tool_calls": calls}
