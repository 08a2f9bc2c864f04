"""How a model's tokenizer writes a conversation: the prompt before an answer, the end after it."""

from __future__ import annotations

from typing import Any

from babylon_tasks.errors import UserError

_MARKER = "RESPONSE-GOES-HERE"


class ChatFormat:
    """One tokenizer's chat template, used the same way in training and in serving.

    The prompt is the template's generation prompt: what a server shows the model. As in ART,
    thinking is switched off where the template knows the switch.

    Raises:
        UserError: The tokenizer has no chat template.
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
        self.end_ids = self._find_end()

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text that the model is shown before it answers.

        Raises:
            jinja2.TemplateError: The template refuses these messages.
        """
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._options
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

    def _find_end(self) -> list[int]:
        """The tokens that end an assistant's turn, e.g. `<|im_end|>` without its line break."""
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARKER}]
        text: str = self._tokenizer.apply_chat_template(turn, tokenize=False, **self._options)
        after = text.rpartition(_MARKER)[2]
        ids = self.encode([after])[0]
        ends = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        for position, token_id in enumerate(ids):
            if token_id in ends:
                return ids[: position + 1]
        return self.encode([after.rstrip()])[0]
