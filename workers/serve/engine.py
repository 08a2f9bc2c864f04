"""The engine of the small server: one base model in memory, a few adapters, greedy generation."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jinja2
import msgspec
import torch
from peft import PeftModel

from babylon_tasks.errors import BabylonError, UserError
from babylon_tasks.records.trainer_requests import Generation
from babylon_tasks.text import first_line
from workers.trainer.bars import need_no_semaphore
from workers.trainer.torch.base_model import base_revision, load_base
from workers.trainer.torch.generator import Generator

ADAPTERS_KEPT = 4
MAX_NEW_TOKENS = 256


class ServedModel(NamedTuple):
    """The model of a name; `adapter` is a local folder, or None for the bare base model.

    With `base_revision` only that revision of the base model will do.
    """

    base_model: str
    step: int
    adapter: Path | None
    base_revision: str | None = None


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str


class ChatRequest(msgspec.Struct):
    """What this server knows of OpenAI's request; other fields are ignored."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    stream: bool | None = None
    logprobs: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # vLLM's: a token is `token_id:N`, not its text


class Completion(NamedTuple):
    """A generated answer; `logprobs` is as OpenAI writes it, None if it was not asked for."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class BadRequest(BabylonError):
    """The request cannot be answered as it is; the message says why."""


class Engine:
    """One base model in memory and the newest few adapters on it; thread-safe."""

    def __init__(self) -> None:
        need_no_semaphore()  # uvicorn ends by the signal that it was sent
        self._lock = threading.Lock()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._base: tuple[str, str | None] | None = None  # the base model in memory, its revision
        self._network: Any = None
        self._adapters: OrderedDict[Path, str] = OrderedDict()  # folder: peft's name, oldest first
        self._loads = 0

    def complete(self, served: ServedModel, request: ChatRequest) -> Completion:
        """Generate one answer; greedy unless a temperature is given.

        Raises:
            BadRequest: The conversation does not fit the model, or its template refuses it.
            UserError: The model's files cannot be read.
        """
        with self._lock, torch.inference_mode():
            self._load_base(served.base_model, served.base_revision)
            self._activate(served.adapter)
            prompt = self._prompt(request)
            limit = self._generator.context_tokens
            if len(prompt) >= limit:
                raise BadRequest(f"the prompt has {len(prompt)} tokens, the model takes {limit}")
            wanted = request.max_completion_tokens or request.max_tokens or MAX_NEW_TOKENS
            return self._generate(prompt, min(wanted, limit - len(prompt)), request)

    def _prompt(self, request: ChatRequest) -> list[int]:
        messages = [
            {"role": m.role, "content": m.content.encode("utf-8", "replace").decode()}
            for m in request.messages
        ]
        try:
            prompt = self._chat.encode([self._chat.prompt(messages)])[0]
        except jinja2.TemplateError as error:
            raise BadRequest(f"the model's chat template refuses the messages: {error}") from error
        if not self._chat.facts.knows(prompt):
            raise BadRequest("the messages hold tokens, of a picture say, that the model has not")
        return prompt

    def _generate(self, prompt: list[int], max_new: int, request: ChatRequest) -> Completion:
        (one,) = self._generator.generate(
            self._network, [prompt], max_new, request.temperature or 0.0, request.seed
        )
        logprobs = self._logprobs(one, request) if request.logprobs else None
        return Completion(one.text, len(prompt), len(one.token_ids), one.finish_reason, logprobs)

    def _logprobs(self, answer: Generation, request: ChatRequest) -> dict[str, Any]:
        """Write an answer's tokens; the end token, which has no text to show, only by its id."""
        if request.return_tokens_as_token_ids:
            shown = [f"token_id:{token}" for token in answer.token_ids]
        else:
            end = -1 if answer.finish_reason == "stop" else None
            shown = self._chat.token_texts(answer.token_ids[:end])
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in zip(shown, answer.logprobs, strict=False)
        ]
        return {"content": content, "refusal": None}

    def _load_base(self, base_model: str, wanted: str | None) -> None:
        if self._base == (base_model, wanted):
            return
        self._network, self._base = None, None
        self._adapters.clear()
        revision = base_revision(base_model, wanted)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._chat, network = load_base(base_model, revision, self._device, dtype)
        self._generator = Generator(network, self._chat)
        self._network = network.eval()
        self._base = base_model, wanted

    def _activate(self, adapter: Path | None) -> None:
        """Make the adapter, or none, the active one."""
        if adapter is None:
            if isinstance(self._network, PeftModel):
                self._network.base_model.disable_adapter_layers()
            return
        if adapter not in self._adapters:
            self._load_adapter(adapter)
        self._adapters.move_to_end(adapter)
        self._network.base_model.enable_adapter_layers()
        self._network.set_adapter(self._adapters[adapter])
        while len(self._adapters) > ADAPTERS_KEPT:
            _, oldest = self._adapters.popitem(last=False)
            self._network.delete_adapter(oldest)

    def _load_adapter(self, adapter: Path) -> None:
        self._loads += 1
        name = f"adapter{self._loads}"
        try:
            if isinstance(self._network, PeftModel):
                self._network.load_adapter(str(adapter), adapter_name=name)
            else:
                self._network = PeftModel.from_pretrained(
                    self._network, str(adapter), adapter_name=name
                ).eval()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(f"cannot read the checkpoint {adapter}: {reason}") from error
        self._adapters[adapter] = name
