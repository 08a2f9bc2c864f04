"""What a trainer is asked besides steps: to evaluate recorded answers, and to generate new ones.

Both change no weights and write no files. `checkpoint` is the folder of a step, or None for the
base model alone; `base_revision` is as in a `StepRequest`; `model_name` is for messages.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class EvaluateRequest(msgspec.Struct, frozen=True, tag="evaluate"):
    """Ask how likely a model finds the recorded answers of a samples file.

    `samples_path`, `max_sequence_tokens` and `micro_batch_tokens` are as for a step, and so are the
    tokens; rewards play no part.
    """

    model_name: str
    base_model: str
    checkpoint: str | None
    samples_path: str
    max_sequence_tokens: int
    micro_batch_tokens: int
    base_revision: str | None = None


class Likelihood(msgspec.Struct, frozen=True):
    """What a model thinks of one trajectory: the sum of its tokens' log-probabilities.

    `tokens` counts the response tokens of all calls that were not dropped, end tokens included.
    `entropy` is the sum of the model's entropies where these were chosen, in nats.
    """

    trajectory_id: str
    tokens: int
    logprob: float
    entropy: float = 0.0


class EvaluateResult(msgspec.Struct, frozen=True, tag="evaluate_result"):
    """One `Likelihood` for each sample, in the file's order, and what the whole took.

    `calls` were evaluated; `dropped` calls are empty or longer than `max_sequence_tokens`, or the
    chat template refuses them. `seconds` is wall time, the loading of weights included.
    """

    trajectories: list[Likelihood]
    calls: int
    dropped: int
    tokens: int
    device: str
    seconds: float
    base_revision: str | None = None


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """Ask for `n` answers to each prompt, of at most `max_tokens` tokens (at least 1).

    A prompt is a list of chat messages, as `Call.prompt` gives it, without lone surrogates; `tools`
    has what `Call.shown_tools` gives, for each prompt or for none. At temperature 0 the likeliest
    token is taken each time; above it, tokens are drawn: the same request draws the same.

    `remote_url` is where W&B answers (SERVERLESS_URL), for the serverless trainer. There a prompt
    counts as dropped if W&B refuses it, and whether the same is drawn again is W&B's to say.
    """

    model_name: str
    base_model: str
    checkpoint: str | None
    prompts: list[list[dict[str, Any]]]
    max_tokens: int
    temperature: float
    seed: int
    n: int = 1
    base_revision: str | None = None
    tools: list[list[dict[str, Any]] | None] = []
    remote_url: str | None = None


class Generation(msgspec.Struct, frozen=True):
    """An answer: its tokens, and their log-probabilities at temperature 1, as a step has them.

    `text` is without special tokens. `stop`: the last token is the end token; `length`: there was
    no room for it. Of W&B's answers the ids may be missing, or all of both.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


class GenerateResult(msgspec.Struct, frozen=True, tag="generate_result"):
    """`n` answers for each prompt, in the request's order, and what the whole took.

    A `dropped` prompt has no answer: the chat template refuses it, or with `max_tokens` after it
    it is longer than the model takes. `tokens` counts those generated; `seconds` is as in an
    `EvaluateResult`.
    """

    generations: list[list[Generation]]
    dropped: int
    tokens: int
    device: str
    seconds: float
    base_revision: str | None = None
