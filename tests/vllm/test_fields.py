"""Every field of vLLM's requests is one that clients may set, or one that we refuse."""

from __future__ import annotations

import json
import subprocess

from tests.vllm.servers import PYTHON
from workers.serve.vllm.question import REFUSED

# They change what is said, and neither the prompt nor what others get.
ALLOWED = {
    "allowed_token_ids", "bad_words", "frequency_penalty", "ignore_eos", "include_reasoning",
    "include_stop_str_in_output", "length_penalty", "logit_bias", "logprob_token_ids", "logprobs",
    "max_completion_tokens", "max_tokens", "messages", "min_p", "min_tokens", "model", "n",
    "parallel_tool_calls", "presence_penalty", "prompt", "reasoning_effort", "repetition_penalty",
    "response_format", "return_token_ids", "return_tokens_as_token_ids", "seed",
    "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids", "stream",
    "stream_options", "structured_outputs", "suffix", "temperature", "thinking_token_budget",
    "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "user",
}  # fmt: skip
CODE = """
import json
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
print(json.dumps([*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields]))
"""


def test_no_field_is_new() -> None:
    told = subprocess.run([PYTHON, "-P", "-c", CODE], capture_output=True, text=True, check=True)
    fields = set(json.loads(told.stdout.splitlines()[-1]))
    assert fields - ALLOWED - REFUSED == set()
