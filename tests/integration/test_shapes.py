"""Agents whose calls are recorded in many shapes: one window of them is scored and trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

from transformers import AutoTokenizer

from babylon_tasks import pipeline
from babylon_tasks.cli.window_screen import funnel_lines
from babylon_tasks.work.context import Context
from tests.logprobs_server import LogprobsServer
from tests.rows import add_trajectory, hours_ago, one, states
from tests.unit.tiny import make_tiny_model
from workers.trainer.torch.sequences import Sequences
from workers.trainer.torch.trainer import TorchTrainer

# ChatML with tools, in the manner of Qwen2.5.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' }}
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>{{ m.content }}</tool_response><|im_end|>
{% elif not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", \
"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SCHEMA = {"type": "object", "properties": {"of": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "price", "parameters": SCHEMA}}
SHOWN_TOOL = json.dumps(TOOL)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

SIX: list[tuple[dict[str, Any], str]] = [
    (
        {"systemPrompt": "You trade.", "userPrompt": "Buy or wait?"},
        "<|im_start|>system\nYou trade.<|im_end|>\n<|im_start|>user\nBuy or wait?<|im_end|>\n",
    ),
    ({"prompt": "Is NOVA cheap?"}, "<|im_start|>user\nIs NOVA cheap?<|im_end|>\n"),
    (
        {
            "messages": [
                {"role": "system", "content": "You trade."},
                {"role": "user", "content": "Hm?"},
                {"role": "assistant", "content": "I wait."},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
            ],
            "userPrompt": "And now?",
        },
        "<|im_start|>system\nYou trade.<|im_end|>\n<|im_start|>user\nHm?<|im_end|>\n"
        "<|im_start|>assistant\nI wait.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n",
    ),
    (
        {
            "messages": [
                {"role": "system", "content": "You trade."},
                {"role": "user", "content": "Look."},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "price", "arguments": '{"of":"NOVA"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": '{"is":12}'},
            ],
            "tools": [TOOL],
        },
        f"<|im_start|>system\nYou trade.\n# Tools\n{SHOWN_TOOL}\n<|im_end|>\n"
        '<|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n<tool_call>{"name": "price", '
        '"arguments": {"of": "NOVA"}}</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>{"is":12}</tool_response><|im_end|>\n',
    ),
    (
        {
            "system": "You trade.",
            "messages": [
                {"role": "user", "content": "Look there."},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "c1", "name": "price", "input": {"of": "ORBX"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "7"}],
                },
            ],
            "response": [{"type": "text", "text": "BUY"}],
        },
        "<|im_start|>system\nYou trade.<|im_end|>\n<|im_start|>user\nLook there.<|im_end|>\n"
        '<|im_start|>assistant\nI look.<tool_call>{"name": "price", "arguments": {"of": "ORBX"}}'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>7</tool_response><|im_end|>\n",
    ),
    (
        {
            "messages": [
                {"type": "human", "content": "Sell?"},
                {"type": "ai", "content": "BUY", "tool_calls": []},
            ],
            "response": {"type": "ai", "content": "BUY", "tool_calls": []},
        },
        "<|im_start|>user\nSell?<|im_end|>\n",
    ),
]
ODD: list[Any] = [
    {"response": "BUY"},
    {"messages": [{"role": "user", "content": [IMAGE]}], "response": "BUY"},
    {"userPrompt": "Buy?", "response": {"tool_calls": [{"function": {"name": "buy"}}]}},
    {"userPrompt": 42, "response": "BUY"},
    None,
]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def add_agents(context: Context, window: str) -> None:
    """One agent a shape, of whom each has odd calls besides."""
    for number, (recorded, _) in enumerate(SIX):
        step = {
            "environmentState": {"agentPnL": 200 * number - 500},
            "llmCalls": [{"response": "BUY", **recorded}, *ODD],
            "action": {"actionType": "BUY_SHARES", "success": True},
        }
        text = json.dumps([step, "an odd step"])
        add_trajectory(context, window, f"agent-{number}", stepsJson=text)


def test_six_shapes_are_trained_as_a_server_shows_them(
    make_context: Callable[..., Context], base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that is asked for log-probabilities writes the same tokens as the trainer."""
    trained: list[str] = []
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    add = Sequences.add

    def watched(self: Sequences, prompt: Any, answer: Any, *more: Any, **named: Any) -> None:
        trained.append(tokenizer.decode([*prompt, *answer]))
        add(self, prompt, answer, *more, **named)

    monkeypatch.setattr(Sequences, "add", watched)
    window = hours_ago(2)
    with LogprobsServer(base_model) as server:
        server.models["base"] = None
        context = make_context(
            base_model=base_model, logprobs_url=server.url, logprobs_model="base"
        )
        add_agents(context, window)
        pipeline.produce(context)
        assert pipeline.score(context) == [window]
        report = pipeline.train(context, TorchTrainer("cpu-0"))
    expected = sorted(f"{prompt}<|im_start|>assistant\nBUY<|im_end|>" for _, prompt in SIX)
    assert sorted(trained) == expected
    assert sorted(text for _, text in server.asked) == expected
    assert report is not None
    assert report.result.metrics["logprobs_misfit"] == 0
    row = one(context, "SELECT state, funnel FROM rl.windows")
    assert row["state"] == "trained"
    funnel = row["funnel"]
    assert funnel["calls"] == 7 * len(SIX)
    left_out = {"no_prompt": 1, "no_text": 1, "tool_call": 1, "odd_shape": 3}
    for reason, each in left_out.items():
        assert funnel[reason] == each * len(SIX)
    assert (funnel["sequences"], funnel["unreadable"], funnel["unattached"]) == (len(SIX), 0, 0)


def test_a_window_of_prompts_that_nobody_finds_is_skipped(context: Context) -> None:
    """Not trained on answers to nothing."""
    window = hours_ago(2)
    call = {"input": "Buy?", "output": "BUY", "response": "BUY"}
    for number in range(3):
        step = {"environmentState": {"agentPnL": 100 * number}, "llmCalls": [call]}
        add_trajectory(context, window, f"agent-{number}", stepsJson=json.dumps([step] * 3))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert states(context) == {window: "skipped"}
    row = one(context, "SELECT reason, funnel FROM rl.windows")
    assert row["reason"] == "0 trainable trajectories, a comparison needs 2"
    assert row["funnel"]["no_prompt"] == 9
    shown = [line.text for line in funnel_lines({"trajectories": 3}, row["funnel"])]
    assert "9; left out: 9 no_prompt" in shown
