"""What vLLM is asked: the client's body, what the endpoint adds, and what it must not get."""

from __future__ import annotations

from typing import Any

from workers.serve.backend import ApiError, Question

PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}

# Without these vLLM takes the defaults of the model's generation_config.json (`--generation-config
# auto`): other ones than those of OpenAI, and of the answers that were trained.
_DEFAULTS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}

# What the trainer, too, passes to the chat template (workers/trainer/torch/chat_format.py).
_TEMPLATE = {"enable_thinking": False, "preserve_thinking": True}

# What vLLM would do for whoever asks, and no client of ours may: choose another template (code of
# Jinja) or prompt than is trained; other requests' cache, order or name; memory and time without
# bound; tensors to unpickle. `tests/vllm/test_fields.py` compares this with vLLM's own list.
REFUSED = frozenset({
    "add_generation_prompt", "add_special_tokens", "cache_salt", "chat_template",
    "chat_template_kwargs", "continue_final_message", "data_parallel_rank", "documents",
    "ec_transfer_params", "echo", "kv_transfer_params", "logits_processors", "lora_request",
    "media_io_kwargs", "mm_payload", "mm_processor_kwargs", "priority", "prompt_embeds",
    "prompt_logprobs", "repetition_detection", "request_id", "return_mm_kwargs",
    "return_prompt_text", "return_token_offsets", "routed_experts_prompt_start", "session_id",
    "stream_interval", "truncate_prompt_tokens", "truncation_side",
    "use_beam_search", "vllm_xargs", "watermarking",
})  # fmt: skip


def check(question: Question) -> None:
    """Refuse what vLLM must not get from a client.

    Raises:
        ApiError: A field may not be set, or a message has a part that is no text.
    """
    for name in given(question):
        if name in REFUSED:
            raise ApiError(400, f"{name} is not supported", param=name)
    # vLLM would fetch the URL of a picture from its own network.
    for message in question.body.get("messages", ()):
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                raise ApiError(400, f"content of type {kind!r} is not supported", param="messages")


def given(question: Question) -> dict[str, Any]:
    """Return what the client asks for, without what is so anyway: vLLM refuses even that."""
    return {name: value for name, value in question.body.items() if not _neutral(question, name)}


def _neutral(question: Question, name: str) -> bool:
    value = question.body[name]
    if value is None:
        return True
    if name == "echo":
        return value is False
    if name in ("tools", "suffix", "structured_outputs", "logit_bias"):
        return not value
    if name == "tool_choice":
        return value in ("none", "auto") and not question.body.get("tools")
    if name == "chat_template_kwargs":
        return isinstance(value, dict) and value.items() <= _TEMPLATE.items()
    return False


def body_of(question: Question, model: str) -> dict[str, Any]:
    """Return the body to send; `model` is vLLM's name of the version."""
    body = {**_DEFAULTS, **given(question), "model": model, "stream": question.stream}
    if question.kind == "chat":
        body["chat_template_kwargs"] = _TEMPLATE
    body["return_token_ids"] = True  # a key's budget counts them where an answer is cut
    if question.captured:
        if question.kind == "chat":
            body["logprobs"] = True
        else:
            body.setdefault("logprobs", 0)  # of the tokens that were drawn, and no others
    return body
