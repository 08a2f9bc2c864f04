"""Why an answer ended, where that is recorded: one that was cut off or called a tool is none."""

from __future__ import annotations

from collections.abc import Mapping

from babylon_tasks.records.parts import NotReadable, WhyNot

WHY_IT_ENDED = ("finish_reason", "finishReason", "stop_reason", "stopReason")
_ALSO = ("done_reason", "status")  # Ollama's, and that of OpenAI's Responses API
ALL_ENDS = (*WHY_IT_ENDED, *_ALSO)
_HOLDERS = ("response_metadata", "generation_info", "generationInfo")  # LangChain's
# In the words of OpenAI, Anthropic, Gemini, Bedrock, Mistral, vLLM, Cohere and the AI SDK, in small
# letters, with _ for -.
BY_LIMIT = frozenset({
    "length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded",
    "error_limit", "incomplete",
})  # fmt: skip
BY_FILTER = frozenset({
    "content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety",
    "recitation", "blocklist", "prohibited_content", "spii", "error_toxic",
})  # fmt: skip
BY_FAULT = frozenset({"error", "failed", "abort", "cancelled", "user_cancel"})
CUT_OFF = BY_LIMIT | BY_FILTER | BY_FAULT
_CALLED_A_TOOL = frozenset({"tool_calls", "tool_call", "tool_use", "function_call"})


def require_whole(answer: Mapping[str, object]) -> None:
    """Refuse an answer, or what is recorded around it, that tells of another end than its own.

    Raises:
        NotReadable: It was cut off, or called a tool.
    """
    if why := why_not_whole(answer):
        raise NotReadable(why)


def why_not_whole(answer: Mapping[str, object]) -> WhyNot | None:
    """Return why an answer is none, as far as it tells; None: it may be whole."""
    holders = [answer, *(each for key in _HOLDERS if isinstance(each := answer.get(key), dict))]
    for holder in holders:
        for key in ALL_ENDS:
            reason = holder.get(key)
            if not isinstance(reason, str):
                continue
            reason = plain(reason)
            if reason in CUT_OFF:
                return "truncated"
            if reason in _CALLED_A_TOOL:
                return "tool_call"
    return None


def plain(reason: str) -> str:
    """Return a reason as the sets above have it."""
    return reason.lower().replace("-", "_")
