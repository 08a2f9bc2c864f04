# ruff: noqa: RUF001 - DeepSeek's marks are written with wide bars
"""Chat templates of known model families, as short as their form allows, and kinds of tokenizers.

What a family writes around messages is a fact of its format; tools and system prompts are left out
where they add nothing. Each family has the kind of tokenizer that it has in public.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Will the market rise or fall? Say YES or NO. The momentum is strong: buy; it is weak: sell.",
    "You are a trading agent. Answer with one action: BUY, SELL or HOLD, and the reason for it.",
    "user assistant system model tool think </think> analysis final",
    "\n\n  ### Response:\n1. a\n\n\nb",
    "Today Date: 15 Jan 2025. Cutting Knowledge Date: December 2023 ANSWER QUESTION",
]
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    return _train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False),
    )


def gpt2() -> Tokenizer:
    return byte_level(pre.ByteLevel(add_prefix_space=False))


def qwen() -> Tokenizer:
    """Line breaks become one token with those after them."""
    split = pre.Split(Regex(_WORDS), "isolated")
    tokenizer = byte_level(
        pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _pieces(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


_BYTES = [f"<0x{n:02X}>" for n in range(256)]


def sentencepiece(scheme: str) -> Tokenizer:
    """BPE with bytes for what is unknown, words begin with ▁; `scheme`: where ▁ is put before."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *_BYTES], show_progress=False
    )
    made = json.loads(_train(_pieces(tokenizer), trainer).to_str())
    made["added_tokens"] = []  # bytes are words like others
    return Tokenizer.from_str(json.dumps(made))


def llama2_kind() -> Tokenizer:
    """As old files of Llama have it: a normalizer writes the ▁, after each control token anew."""
    tokenizer = sentencepiece("first")
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "</s>"]
    return _train(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _train(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
    )


@dataclass(frozen=True)
class Family:
    """A template, what its tokenizer knows, and what an answer is there.

    `answer` is what is trained of the answer `BUY it now`: its lead, itself and its end. `refused`:
    the message with which the model is refused.
    """

    template: str
    answer: str = ""
    tokenizer: Callable[[], Tokenizer] = gpt2
    eos: str = "<|im_end|>"
    bos: str | None = None
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    words: tuple[str, ...] = ()  # added, but not special
    stops: tuple[str, ...] = ()  # of generation_config.json, besides eos
    refused: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


_EACH = "{% for m in messages %}"
_END = "{% endfor %}"
_ASK = "{% if add_generation_prompt %}"
_FI = "{% endif %}"
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
)
_THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHATML = (
    _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + _END
    + _ASK + "<|im_start|>assistant\n" + _FI
)  # fmt: skip

# Qwen: tool calls in <tool_call>, tool results as the user's.
_CALLS = (
    "{% for c in m.tool_calls or [] %}{% set c = c.function %}\n<tool_call>\n"
    '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
)
_QWEN_TURN = (
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\nTURN" + _CALLS + "<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
)
QWEN25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba "
    "Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    + _EACH + _QWEN_TURN.replace("TURN", "{{ m.content }}") + _END
    + _ASK + "<|im_start|>assistant\n" + _FI
)  # fmt: skip
_QWEN3_TURN = (
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set ns.thought = '' %}{% if '</think>' in m.content %}{% set ns.thought = "
    "m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "{% if loop.last or ns.thought %}{{ '<think>\n' + ns.thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content }}"
)
_QWEN3 = "{% set ns = namespace(thought='') %}" + _EACH + _QWEN_TURN.replace("TURN", _QWEN3_TURN)
QWEN3 = (
    _QWEN3 + _END + _ASK + "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}" + _FI
)  # fmt: skip
QWEN3_THINKING = _QWEN3 + _END + _ASK + "<|im_start|>assistant\n<think>\n" + _FI
QWQ = (
    _EACH
    + _QWEN_TURN.replace(
        "TURN",
        "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') }}",
    )
    + _END + _ASK + "<|im_start|>assistant\n<think>\n" + _FI
)  # fmt: skip
R1 = (
    "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    + _EACH
    + "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    + _END + _ASK + "<｜Assistant｜><think>\n" + _FI
)  # fmt: skip
GPT_OSS = (
    "<|start|>system<|message|>You are ChatGPT.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "Reasoning: medium<|end|>"
    + _EACH
    + "{% if m.role == 'system' %}<|start|>developer<|message|># Instructions\n\n{{ m.content }}"
    "<|end|>{% elif m.role == 'assistant' %}"
    "{% if '<|channel|>final<|message|>' in m.content %}{{ raise_exception('channel tags') }}"
    "{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    + _END + _ASK + "<|start|>assistant" + _FI
)  # fmt: skip
GLM4 = (
    "[gMASK]<sop>" + _EACH + "<|{{ m.role }}|>\n{{ m.content }}" + _END
    + _ASK + "<|assistant|>" + _FI
)  # fmt: skip
ALPACA = (
    _EACH
    + "{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "### Instruction:\n{{ m.content }}\n\n{% else %}### Response:\n{{ m.content }}\n\n{% endif %}"
    + _END + _ASK + "### Response:\n" + _FI
)  # fmt: skip
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    + _EACH
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
    "alternate') }}{% endif %}{% set content = (system if loop.first else '') + m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}" + _END
)  # fmt: skip
MISTRAL1 = _NO_SYSTEM + (
    "{{ bos_token }}" + _EACH + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token}}{% endif %}" + _END
)  # fmt: skip
# The system message goes with the user's if that is the last: where an answer follows, it is gone.
MISTRAL3 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}"
    + _EACH
    + "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token}}{% endif %}" + _END
)  # fmt: skip
NEMO = MISTRAL3.replace("'[INST] '", "'[INST]'").replace("' ' + m.content | trim", "m.content")
ZEPHYR = (
    _EACH + "<|{{ m.role }}|>\n{{ m.content + eos_token }}\n" + _END
    + _ASK + "<|assistant|>\n" + _FI
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}" + _EACH
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
    "'<|eot_id|>' }}" + _END + _ASK + "<|start_header_id|>assistant<|end_header_id|>\n\n" + _FI
)  # fmt: skip
LLAMA32 = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' "
    "%}{% endif %}{% endif %}{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    + LLAMA3.removeprefix("{{ bos_token }}")
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}" + _EACH
    + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | "
    "trim + '<end_of_turn>\n' }}" + _END + _ASK + "<start_of_turn>model\n" + _FI
)  # fmt: skip
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + "
    "'\n\n' %}{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}" + _EACH
    + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if "
    "loop.first else '') + m.content | trim + '<end_of_turn>\n' }}"
    + _END + _ASK + "<start_of_turn>model\n" + _FI
)  # fmt: skip
PHI3 = (
    _EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}" + _END
    + _ASK + "<|assistant|>\n{% else %}{{ eos_token }}" + _FI
)  # fmt: skip
SMOLLM2 = (
    _EACH
    + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    + _END + _ASK + "<|im_start|>assistant\n" + _FI
)  # fmt: skip
SMOLLM3 = (
    "{% set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' "
    "%}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% if '/think' in system %}{% set mode = '/think' %}{% endif %}"
    "{% set system = system.replace('/think', '').rstrip() %}{% endif %}"
    "<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
    "Reasoning Mode: {{ mode }}\n\n## Custom Instructions\n\n{{ system }}\n\n<|im_end|>\n"
    "{% set empty = '<think>\n\n</think>\n' if mode == '/no_think' else '' %}"
    + _EACH
    + "{% if m.role == 'user' or m.role == 'tool' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + empty + "
    "m.content.lstrip('\n') + '<|im_end|>\n' }}{% endif %}"
    + _END + _ASK + "{{ '<|im_start|>assistant\n' + empty }}" + _FI
)  # fmt: skip
COHERE = (
    "{{ bos_token }}" + _EACH
    + "<|START_OF_TURN_TOKEN|><|{{ {'assistant': 'CHATBOT'}.get(m.role, m.role | upper) }}_TOKEN|>"
    "{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>" + _END
    + _ASK + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>" + _FI
)  # fmt: skip
GLM45 = (
    "[gMASK]<sop>" + _EACH
    + "{% if m.role == 'assistant' %}<|assistant|>\n<think></think>\n"
    "{{ m.content.split('</think>')[-1].strip() }}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'user' and not enable_thinking %}/nothink{% endif %}{% endif %}"
    + _END + _ASK + "<|assistant|>{{ '' if enable_thinking else '\n<think></think>' }}" + _FI
)  # fmt: skip
VICUNA = (
    _EACH
    + "{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}"
    "{% endif %}" + _END + _ASK + "ASSISTANT:" + _FI
)  # fmt: skip
NO_GENERATION_PROMPT = (
    _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + _END
)  # fmt: skip

_S = ("<s>", "</s>")
_LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
_R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_GLM = ("[gMASK]", "<sop>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
_OSS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")
_GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_COHERE = tuple(
    f"<|{name}_TOKEN|>" for name in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM")
)

FAMILIES = {
    "chatml": Family(CHATML, "BUY it now<|im_end|>"),
    "qwen2.5": Family(QWEN25, "BUY it now<|im_end|>", qwen, words=_THINK[2:]),
    "qwen3": Family(QWEN3, "BUY it now<|im_end|>", qwen, words=_THINK),
    "qwen3-thinking": Family(
        QWEN3_THINKING, "\n</think>\n\nBUY it now<|im_end|>", qwen, words=_THINK
    ),
    "qwq": Family(QWQ, "\n</think>\n\nBUY it now<|im_end|>", qwen, words=_THINK),
    "deepseek-r1-distill": Family(
        R1, f"\n</think>\n\nBUY it now{_R1[1]}", qwen, _R1[1], _R1[0], _R1, _THINK[:2]
    ),
    "gpt-oss": Family(
        GPT_OSS, "<|channel|>final<|message|>BUY it now<|return|>", qwen, "<|return|>", None, _OSS,
        stops=("<|call|>",),
    ),
    "glm-4": Family(
        GLM4, "\nBUY it now<|user|>", qwen, _GLM[2], None, _GLM, stops=("<|user|>",)
    ),
    "glm-4.5": Family(
        GLM45, "\nBUY it now<|user|>", qwen, _GLM[2], None, _GLM, _THINK[:2], ("<|user|>",)
    ),
    "alpaca": Family(ALPACA, "BUY it now</s>", llama2_kind, "</s>", "<s>", _S),
    "alpaca-byte-level": Family(ALPACA, "BUY it now</s>", gpt2, "</s>", "<s>", _S),
    "llama-2": Family(LLAMA2, "BUY it now </s>", llama2_kind, "</s>", "<s>", _S),
    "llama-3.1": Family(
        LLAMA3, "BUY it now<|eot_id|>", qwen, "<|eot_id|>", _LLAMA3[0], _LLAMA3
    ),
    "llama-3.2": Family(
        LLAMA32, "BUY it now<|eot_id|>", qwen, "<|eot_id|>", _LLAMA3[0], _LLAMA3
    ),
    "mistral-0.1": Family(
        MISTRAL1, "", lambda: sentencepiece("first"), "</s>", "<s>", _S, refused="no system role"
    ),
    "mistral-0.3": Family(
        MISTRAL3, "BUY it now</s>", lambda: sentencepiece("first"), "</s>", "<s>",
        (*_S, "[INST]", "[/INST]"),
    ),
    "mistral-always": Family(
        MISTRAL3, "BUY it now</s>", lambda: sentencepiece("always"), "</s>", "<s>", _S
    ),
    "nemo": Family(
        NEMO, "BUY it now</s>", qwen, "</s>", "<s>", (*_S, "[INST]", "[/INST]")
    ),
    "tinyllama": Family(ZEPHYR, "BUY it now</s>", llama2_kind, "</s>", "<s>", _S),
    "zephyr": Family(
        ZEPHYR, "BUY it now</s>", lambda: sentencepiece("first"), "</s>", "<s>", _S
    ),
    "zephyr-never": Family(
        ZEPHYR, "BUY it now</s>", lambda: sentencepiece("never"), "</s>", "<s>", _S
    ),
    "gemma-2": Family(
        _NO_SYSTEM + GEMMA, "", lambda: sentencepiece("never"), "<eos>", "<bos>", _GEMMA,
        refused="no system role",
    ),
    "gemma-3": Family(
        GEMMA3, "BUY it now<end_of_turn>", lambda: sentencepiece("never"), "<eos>", "<bos>",
        _GEMMA, ("\n\n", "\n\n\n"), ("<end_of_turn>",),
    ),
    "phi-3": Family(
        PHI3, "BUY it now<|end|>", llama2_kind, "<|endoftext|>", "<s>",
        ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        stops=("<|end|>",), more={"rstrip": True},
    ),
    "smollm2": Family(SMOLLM2, "BUY it now<|im_end|>"),
    "smollm3": Family(SMOLLM3, "BUY it now<|im_end|>", qwen, words=_THINK),
    "command-r": Family(
        COHERE, "BUY it now<|END_OF_TURN_TOKEN|>", qwen, _COHERE[1], "<BOS_TOKEN>",
        ("<BOS_TOKEN>", *_COHERE),
    ),
    "vicuna": Family(VICUNA, "BUY it now</s>", llama2_kind, "</s>", "<s>", _S),
    "unigram": Family(ZEPHYR, "BUY it now</s>", unigram, "</s>", "<s>", _S),
    "wordpiece": Family(CHATML, "BUY it now<|im_end|>", wordpiece),
    "no-generation-prompt": Family(NO_GENERATION_PROMPT, refused="no generation prompt"),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> Any:
    """Make the family's tokenizer; its control tokens come last, as in most models."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, **family.more) for text in family.special]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in family.words])
    unknown = next((t for t in ("<unk>", "[UNK]") if tokenizer.token_to_id(t) is not None), None)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=family.eos,
        bos_token=family.bos,
        unk_token=unknown,
        additional_special_tokens=[*family.special],
    )
    fast.chat_template = family.template
    return fast
