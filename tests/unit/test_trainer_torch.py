"""The torch trainer with a real, tiny model: its tokens against ART's, its gradients, its files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import art.preprocessing.tokenize as art_tokenize
import torch
from art.loss import loss_fn
from art.preprocessing.pack import packed_tensors_from_tokenized_results
from art.trajectories import TrajectoryGroup
from openai.types.chat.chat_completion import Choice
from safetensors.torch import load_file
from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

from babylon_tasks.errors import CheckpointUnreadable, Final, UserError
from babylon_tasks.records.steps import Call, Logprobs, Progress, Sample, StepRequest, StepResult
from tests.unit.first_update import first_gradients
from tests.unit.tiny import make_request, make_tiny_model, sample, two_sided
from workers.trainer.samples import read_samples, trajectory_groups
from workers.trainer.torch.batches import StepTensors, micro_batches
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.gradients import Totals
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.tokenized import tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.wandb.recorded import trajectory

# ART correlates the recorded logprobs, of which there are none.
pytestmark = pytest.mark.filterwarnings("ignore:cov")


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trainer(base_model: str) -> TorchTrainer:
    return TorchTrainer("cpu-0")


@pytest.fixture(scope="session")
def chat(base_model: str) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(base_model), base_model)


def run(trainer: TorchTrainer, request: StepRequest) -> StepResult:
    return trainer.step(request, lambda progress: None)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def random_samples(seed: int, windows: int = 3) -> list[Sample]:
    rng = random.Random(seed)
    words = ["rise", "fall", "BUY", "SELL", "hold", "momentum", "é", "模型", "\n", "12.5", " "]

    def text(low: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(low, 30)))

    return [
        sample(
            f"w{w}",
            n,
            rng.random(),
            *[
                (text(1) if rng.random() < 0.7 else "", text(1), text(1) + "x")
                for _ in range(rng.randint(1, 3))
            ],
        )
        for w in range(windows)
        for n in range(rng.randint(2, 4))
    ]


def long_samples(seed: int, windows: int = 2) -> list[Sample]:
    """Long prompts and short answers, as agents have them."""
    rng = random.Random(seed)
    return [
        sample(
            f"w{w}",
            n,
            rng.random(),
            *[
                ("You trade.", "rise or fall " * rng.randint(5, 40), "BUY " * rng.randint(1, 6))
                for _ in range(rng.randint(1, 3))
            ],
        )
        for w in range(windows)
        for n in range(3)
    ]


def with_logprobs(chat: ChatFormat, samples: list[Sample], seed: int) -> list[Sample]:
    """The same calls, of which about two in three have log-probabilities; some of the end too."""
    rng = random.Random(seed)

    def of(response: str) -> Logprobs | None:
        end = [] if rng.random() < 0.5 else chat.end_ids
        token_ids = (*chat.encode([response])[0], *end)
        values = tuple(-rng.expovariate(0.3) for _ in token_ids)
        return Logprobs(token_ids, values) if rng.random() < 0.67 else None

    return [
        msgspec.structs.replace(
            one,
            calls=[msgspec.structs.replace(c, logprobs=of(c.response)) for c in one.calls],
        )
        for one in samples
    ]


# --- tokens ---


def rows_of(packed: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each sequence of the one packed row, in order."""
    step = StepTensors.from_packed(packed)
    return [
        {key: value[start : start + length] for key, value in step.tensors.items()}
        for start, length in zip(step.starts, step.lengths, strict=True)
    ]


def test_the_end_token_is_trained_and_the_line_break_after_it_is_not(chat: ChatFormat) -> None:
    groups = trajectory_groups(two_sided(windows=1))
    for row in rows_of(tokenize_groups(chat, groups, 1024).sequences.packed(0.0)):
        decoded = chat.tokenizer.decode(row["tokens"])
        answer = chat.tokenizer.decode(row["tokens"][row["assistant_mask"]])
        assert answer in {"YES<|im_end|>", "NO<|im_end|>", "BUY it now<|im_end|>", "HOLD<|im_end|>"}
        assert decoded.endswith("<|im_start|>assistant\n" + answer)


def test_what_was_done_badly_ends_where_the_model_ended_it(chat: ChatFormat) -> None:
    def trained(response: str, ended: bool, *ids: int) -> list[int]:
        logprobs = Logprobs(ids, (-0.5,) * len(ids)) if ids else None
        bad = Call("", "buy?", response, logprobs, ended=ended)
        groups = [[sample("w", 0, 1.0, ("", "u", "YES")), Sample("w", "w-1", 0.0, [bad])]]
        found = tokenize_groups(chat, groups, 1024)
        assert (found.dropped.total(), found.misfits) == (0, 0)
        assert found.windows["w"].sequences == 2
        prompt = chat.encode([chat.prompt(bad.prompt())])[0]
        row = found.sequences.packed(0.0)["tokens"][0].tolist()[-found.sequences.lengths[1] :]
        assert row[: len(prompt)] == prompt
        assert found.sequences.lengths[1] - len(prompt) == len(row[len(prompt) :])
        return row[len(prompt) :]

    said = chat.encode(["BUY bec"])[0]
    assert trained("", True) == chat.end_ids
    assert trained("", True, *chat.end_ids) == chat.end_ids
    assert trained("BUY bec", True) == [*said, *chat.end_ids]
    assert trained("BUY bec", False) == said
    assert trained("BUY bec", False, *said) == said
    # The recorded tokens say that the model did end it.
    assert trained("BUY bec", False, *said, *chat.end_ids) == [*said, *chat.end_ids]


def test_an_empty_system_message_is_left_out(chat: ChatFormat) -> None:
    groups = trajectory_groups([sample("w", n, n, ("", "u", "r")) for n in range(2)])
    rows = rows_of(tokenize_groups(chat, groups, 1024).sequences.packed(0.0))
    texts = [chat.tokenizer.decode(row["tokens"]) for row in rows]
    text = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nr<|im_end|>"
    assert texts == [text] * 2


@pytest.mark.parametrize("negative_scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("recorded", [False, True], ids=["", "logprobs"])
def test_packed_tensors_are_arts_plus_the_end_token(
    chat: ChatFormat,
    seed: int,
    negative_scale: float,
    recorded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ART's own functions, made to append a missing end token, give the same sequences.

    It gets recorded logprobs in its own form, a `Choice`.
    """
    samples = random_samples(seed)
    samples = with_logprobs(chat, samples, seed) if recorded else samples
    groups = trajectory_groups(samples)
    art_groups = [TrajectoryGroup(art_trajectory(one) for one in group) for group in groups]
    arts_tokenize = art_tokenize.tokenize_trajectory

    def with_end(*args: object, **kwargs: object) -> object:
        result = arts_tokenize(*args, **kwargs)
        if result.token_ids[-len(chat.end_ids) :] == chat.end_ids:
            return result
        result.token_ids += chat.end_ids
        result.assistant_mask += [1] * len(chat.end_ids)
        result.logprobs += [math.nan] * len(chat.end_ids)
        result.input_pos = list(range(len(result.token_ids)))
        return result

    monkeypatch.setattr(art_tokenize, "tokenize_trajectory", with_end)
    monkeypatch.setattr(random, "shuffle", lambda items: None)  # ART shuffles its rows
    theirs = packed_tensors_from_tokenized_results(
        list(
            art_tokenize.tokenize_trajectory_groups(
                chat.tokenizer,
                with_choices(art_groups, samples),
                True,
                True,
                shuffle_group_trajectories=False,
            )
        ),
        1024,
        0,
        advantage_balance=1 - negative_scale,
        pack_results=False,
    )
    found = tokenize_groups(chat, groups, 4096)
    ours = rows_of(found.sequences.packed(1 - negative_scale))
    assert any(not row["logprobs"].isnan().all() for row in ours) == recorded
    assert len(ours) == theirs["tokens"].shape[0]
    for number, row in enumerate(ours):
        length = len(row["tokens"])
        assert not theirs["assistant_mask"][number, length:].any()
        for key in ("tokens", "assistant_mask", "logprobs"):
            torch.testing.assert_close(
                row[key], theirs[key][number, :length], rtol=0, atol=0, equal_nan=True
            )
        for key in ("advantages", "weights"):
            torch.testing.assert_close(row[key], theirs[key][number, :length], rtol=1e-5, atol=0)


def art_trajectory(one: Sample) -> Any:
    answers = [{"role": "assistant", "content": call.response} for call in one.calls]
    return trajectory(
        one, [[*call.prompt(), answer] for call, answer in zip(one.calls, answers, strict=True)]
    )


def with_choices(groups: list[Any], samples: list[Sample]) -> list[Any]:
    """The groups with a `Choice` for each answer whose log-probabilities were recorded."""
    groups = copy.deepcopy(groups)
    for arts, one in zip((t for g in groups for t in g), samples, strict=True):
        histories = [arts, *arts.additional_histories]
        for history, call in zip(histories, one.calls, strict=True):
            if call.logprobs:
                pairs = zip(call.logprobs.token_ids, call.logprobs.values, strict=True)
                content = [
                    {"token": f"token_id:{i}", "logprob": v, "top_logprobs": []} for i, v in pairs
                ]
                message = history.messages_and_choices[-1]
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                history.messages_and_choices[-1] = Choice.model_validate(
                    {**choice, "logprobs": {"content": content}}
                )
    return groups


def test_logprobs_of_other_tokens_are_dropped_and_counted(
    trainer: TorchTrainer, chat: ChatFormat, base_model: str, tmp_path: Path
) -> None:
    ids = (*chat.encode(["BUY it now"])[0], *chat.end_ids)
    assert len(ids) >= 3
    recorded = [
        (ids, len(ids)),  # fits, all of it
        (ids[:-1], len(ids) - 1),  # fits, but for the end
        (ids[:-2], len(ids) - 2),  # cut short
        ((*ids, 5), len(ids) + 1),  # goes on
        ((*ids[:-1], 5), len(ids)),  # ends otherwise
        ((ids[0] + 1, *ids[1:]), len(ids)),  # another tokenizer
        (ids, len(ids) - 1),  # not of one length
    ]
    samples = [
        Sample("w", f"{n}", n / 9, [Call("", f"buy {n}?", "BUY it now", Logprobs(t, (-0.5,) * v))])
        for n, (t, v) in enumerate(recorded)
    ]
    none = sample("w", 99, 0.95, ("", "u", "BUY it now"))
    result = run(trainer, make_request(tmp_path, base_model, [*samples, none]))
    assert result.sequences == 8
    assert result.metrics["logprobs_misfit"] == 5
    share = (2 * len(ids) - 1) / (8 * len(ids))
    assert result.metrics["logprobs_share"] == pytest.approx(share)
    assert result.metrics["kl_recorded"] > 0  # an untrained model says none of it so often
    assert 0 < result.metrics["ratio_mean"] < 1


def test_without_recorded_logprobs_there_are_no_ratios(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    result = run(trainer, make_request(tmp_path, base_model, two_sided()))
    assert (result.metrics["logprobs_share"], result.metrics["logprobs_misfit"]) == (0, 0)
    assert not {"ratio_mean", "ratio_clipped", "kl_recorded", "probs_corr"} & set(result.metrics)


def test_odd_text_never_fails_a_step(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    odd = ["nul \x00 inside", "\ufffe \U0001f600", "<|im_end|> in text", "{{ 7 * 7 }}", "  ", ""]
    samples = [sample("w", n, n / 9, ("", text, text)) for n, text in enumerate(odd)]
    request = make_request(tmp_path, base_model, samples)
    surrogate = {"system": "", "user": "lone \ud800", "response": "\udfff answer"}
    line = {"window_id": "w", "trajectory_id": "t", "reward": 0.9, "calls": [surrogate]}
    with Path(request.samples_path).open("a") as file:
        file.write(json.dumps(line) + "\n")  # as "\ud800": what Postgres would hand back
    with Path(request.samples_path).open("ab") as file:
        file.write(json.dumps(line).replace("\\ud800", "~").encode().replace(b"~", b"\xff\xfe"))
    read = read_samples(request.samples_path)
    assert read[-2].calls[0].user == "lone \ufffd"
    result = run(trainer, request)
    assert (result.sequences, result.dropped_sequences) == (7, 1)
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_too_long_and_empty_calls_are_counted(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    samples = two_sided(windows=1)
    long = ("", "rise " * 400, "YES")
    samples.append(sample("w0", 9, 1.0, long, ("", "u", ""), ("", "u", "r")))
    result = run(trainer, make_request(tmp_path, base_model, samples, max_sequence_tokens=200))
    assert (result.sequences, result.dropped_sequences) == (9, 2)


def test_a_step_with_nothing_left_says_why(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    samples = [sample("w", n, n, ("", "rise " * 99, "r"), ("", "u", "")) for n in range(2)]
    request = make_request(tmp_path, base_model, samples, max_sequence_tokens=30)
    with pytest.raises(Final, match=r"2 are empty, 2 are longer than MAX_SEQUENCE_TOKENS \(30\)"):
        run(trainer, request)
    assert not (tmp_path / "attempt" / "art").exists()


# --- gradients ---


def tensors_of(chat: ChatFormat, samples: list[Sample]) -> StepTensors:
    tokenized = tokenize_groups(chat, trajectory_groups(samples), 1024)
    return StepTensors.from_packed(tokenized.sequences.packed(0.7))


def moved_model(base_model: str) -> LanguageModel:
    """A model whose adapter has moved: the KL to its base is not zero."""
    model = LanguageModel(base_model, torch.device("cpu"))
    model.add_adapter(8, 16, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def gradients_of(
    model: LanguageModel, step: StepTensors, kl_penalty: float, micro_batch_tokens: int
) -> tuple[list[torch.Tensor], Totals]:
    return first_gradients(
        model, step, kl_penalty=kl_penalty, micro_batch_tokens=micro_batch_tokens
    )


def assert_same_gradients(
    ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float
) -> None:
    assert len(ours) == len(theirs) > 0
    whole = math.sqrt(sum(float(g.pow(2).sum()) for g in theirs))
    apart = math.sqrt(sum(float((a - b).pow(2).sum()) for a, b in zip(ours, theirs, strict=True)))
    assert whole > 0
    assert apart / whole < tolerance


def full_logprobs(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """What ART's own service hands to the loss: every position's, from full logits."""
    logits = model.network(input_ids=tokens, use_cache=False).logits.float()
    following = torch.nn.functional.pad(tokens[:, 1:], (0, 1))
    return torch.log_softmax(logits, -1).gather(-1, following[..., None]).squeeze(-1)


@pytest.mark.parametrize("kl_penalty", [0.0, 0.5])
def test_micro_batches_do_not_change_the_gradients(
    base_model: str, chat: ChatFormat, kl_penalty: float
) -> None:
    model, step = moved_model(base_model), tensors_of(chat, random_samples(5))
    whole, one = gradients_of(model, step, kl_penalty, 1_000_000)
    parts, many = gradients_of(model, step, kl_penalty, 120)
    assert many.micro_batches > 2 * one.micro_batches
    assert_same_gradients(parts, whole, 1e-5)
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    assert many.entropy == pytest.approx(one.entropy, rel=1e-5)
    if kl_penalty:
        assert many.drift == pytest.approx(one.drift, rel=1e-4)


def test_a_cpu_takes_no_more_at_once_than_its_cache_holds(
    base_model: str, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.trainer.torch.language_model.CPU_TOKENS", 200)
    model, step = moved_model(base_model), tensors_of(chat, random_samples(5))
    _, totals = gradients_of(model, step, 0.0, 16_384)
    assert totals.micro_batches == len(micro_batches(step.lengths, 200))
    assert totals.micro_batches > len(micro_batches(step.lengths, 16_384))


@pytest.mark.parametrize("samples", [random_samples(6), long_samples(6)], ids=["odd", "long"])
@pytest.mark.parametrize("recorded", [False, True], ids=["", "logprobs"])
def test_gradients_are_those_of_arts_loss_one_sequence_at_a_time(
    base_model: str, chat: ChatFormat, samples: list[Sample], recorded: bool
) -> None:
    samples = with_logprobs(chat, samples, 6) if recorded else samples
    model, step = moved_model(base_model), tensors_of(chat, samples)
    ours, totals = gradients_of(model, step, 0.0, 300)
    model.adapted.zero_grad()
    loss = 0.0
    for start, length in zip(step.starts, step.lengths, strict=True):
        inputs = {k: v[None, start : start + length] for k, v in step.tensors.items()}
        logprobs = full_logprobs(model, inputs["tokens"])
        share = loss_fn(inputs, logprobs, None, None, {}, "sum").policy_loss_sum
        (share / step.trained_tokens).backward()
        loss += float(share.detach()) / step.trained_tokens
    assert_same_gradients(ours, [p.grad for p in model.parameters()], 1e-4)
    assert totals.loss == pytest.approx(loss, rel=1e-4)
    ratios = totals.ratios.metrics(step.trained_tokens)
    assert (ratios["logprobs_share"] > 0) == recorded


def as_said_by(
    model: LanguageModel, chat: ChatFormat, samples: list[Sample], log_ratio: float
) -> list[Sample]:
    """The same calls, by a policy from which the model is everywhere this far."""
    step = tensors_of(chat, samples)
    said = []
    for row in range(len(step.lengths)):
        batch = step.take([row], model.device)
        with torch.no_grad():
            logprobs_n, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
        ids = batch.inputs["tokens"][batch.inputs["assistant_mask"]].tolist()
        values = [value - log_ratio for value in logprobs_n.tolist()]
        said.append(Logprobs(tuple(ids), tuple(values)))
    each = iter(said)
    return [
        msgspec.structs.replace(
            one,
            calls=[msgspec.structs.replace(call, logprobs=next(each)) for call in one.calls],
        )
        for one in samples
    ]


@pytest.mark.parametrize(
    ("times", "counts"),
    [(1, 1.0), (2, 2.0), (1 / 4, 1 / 4), (4.9, 4.9), (8, 5.0), (math.inf, 5.0)],
)
def test_a_token_counts_as_often_as_its_ratio_says(
    base_model: str, chat: ChatFormat, times: float, counts: float
) -> None:
    """old = new - ln 2: the model says it twice as often as who answered, so it counts twice.

    CISPO clips at 1 + 4: beyond it counts 5 times, and no less for being further away.
    """
    model, samples = moved_model(base_model), two_sided()
    plain, _ = gradients_of(model, tensors_of(chat, samples), 0.0, 300)
    log_ratio = min(math.log(times), 9999.0)  # what vLLM has for a token that it could not say
    recorded = as_said_by(model, chat, samples, log_ratio)
    step = tensors_of(chat, recorded)
    found, totals = gradients_of(model, step, 0.0, 300)
    ratios = totals.ratios.metrics(step.trained_tokens)
    assert_same_gradients(found, [counts * gradient for gradient in plain], 1e-4)
    assert ratios["logprobs_share"] == 1
    assert ratios["ratio_mean"] == pytest.approx(counts, rel=1e-4)
    assert ratios["ratio_clipped"] == float(times > 5)
    assert ratios["kl_recorded"] == pytest.approx(-log_ratio, abs=1e-3)
    if times <= 5:
        assert ratios["probs_corr"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("samples", [random_samples(8), long_samples(8)], ids=["odd", "long"])
@pytest.mark.parametrize("recorded", [False, True], ids=["", "logprobs"])
def test_the_kl_penalty_is_arts_over_the_whole_step(
    base_model: str, chat: ChatFormat, samples: list[Sample], recorded: bool
) -> None:
    samples = with_logprobs(chat, samples, 8) if recorded else samples
    model, step = moved_model(base_model), tensors_of(chat, samples)
    ours, totals = gradients_of(model, step, 0.5, 200)
    model.adapted.zero_grad()
    inputs = step.take(list(range(len(step.lengths))), model.device).inputs
    with torch.no_grad(), model.as_base():
        reference = full_logprobs(model, inputs["tokens"])
    logprobs = full_logprobs(model, inputs["tokens"])
    loss = loss_fn(inputs, logprobs, reference, None, {"kl_penalty_coef": 0.5}, "sum")
    (loss.policy_loss_sum / step.trained_tokens).backward()
    assert_same_gradients(ours, [p.grad for p in model.parameters()], 1e-4)
    assert totals.drift == pytest.approx(float(loss.kl_policy_ref), rel=1e-4)


@pytest.mark.parametrize("micro_batch_tokens", [16, 4096])
def test_a_sequence_does_not_see_those_beside_it(
    base_model: str, chat: ChatFormat, micro_batch_tokens: int
) -> None:
    """Its log-probabilities, and its part of the gradients, are those it has alone."""
    model, step = moved_model(base_model), tensors_of(chat, random_samples(11))
    rows = max(micro_batches(step.lengths, 4096), key=len)
    assert len({step.lengths[row] for row in rows}) > 1
    batch = step.take(rows, model.device)
    together, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
    done = 0
    for row in rows:
        one = step.take([row], model.device)
        alone, _ = model.logprobs(one.inputs["tokens"], one.predicts)
        torch.testing.assert_close(together[done : done + len(alone)], alone, rtol=1e-4, atol=1e-5)
        done += len(alone)
    # With one advantage left, the whole step's gradients are that sequence's alone.
    kept, length = step.starts[rows[0]], step.lengths[rows[0]]
    alone_batch = step.take([rows[0]], model.device)
    advantages = torch.zeros_like(step.tensors["advantages"])
    advantages[kept : kept + length] = step.tensors["advantages"][kept : kept + length]
    only = dataclasses.replace(step, tensors={**step.tensors, "advantages": advantages})
    ours, _ = gradients_of(model, only, 0.0, micro_batch_tokens)
    model.adapted.zero_grad()
    logprobs = full_logprobs(model, alone_batch.inputs["tokens"])
    loss = loss_fn(alone_batch.inputs, logprobs, None, None, {}, "sum").policy_loss_sum
    (loss / step.trained_tokens).backward()
    assert_same_gradients(ours, [p.grad for p in model.parameters()], 1e-4)


def test_the_last_layer_works_on_the_trained_positions_only(
    base_model: str, chat: ChatFormat
) -> None:
    model, step = moved_model(base_model), tensors_of(chat, long_samples(3))
    batch = step.take(max(micro_batches(step.lengths, 4096), key=len), model.device)
    seen: list[int] = []
    last = model._body().layers[-1]
    last.mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    some, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
    model._last_layer = None
    every, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
    torch.testing.assert_close(some, every, rtol=1e-5, atol=1e-5)
    assert seen == [int(batch.predicts.sum(1).max()), batch.predicts.shape[1]]


def test_logits_in_several_chunks_give_the_same_gradients(
    base_model: str, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, step = moved_model(base_model), tensors_of(chat, random_samples(9))
    whole, _ = gradients_of(model, step, 0.1, 4096)
    monkeypatch.setattr("workers.trainer.torch.language_model.LOGIT_ROWS", 7)
    chunks, _ = gradients_of(model, step, 0.1, 4096)
    assert_same_gradients(chunks, whole, 1e-5)


def test_out_of_memory_halves_the_micro_batch_and_begins_again(
    base_model: str, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, step = moved_model(base_model), tensors_of(chat, random_samples(5))
    whole, _ = gradients_of(model, step, 0.1, 4096)
    limit_memory(monkeypatch, tokens=300)
    halved, totals = gradients_of(model, step, 0.1, 4096)
    assert totals.micro_batches > 1
    assert_same_gradients(halved, whole, 1e-5)


def limit_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    logprobs = LanguageModel.logprobs

    def limited(self: LanguageModel, batch: torch.Tensor, predicts: torch.Tensor) -> object:
        if batch.numel() > tokens and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result = logprobs(self, batch, predicts)
        if batch.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(LanguageModel, "logprobs", limited)


def test_one_sequence_that_does_not_fit_is_final_and_the_trainer_goes_on(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TorchTrainer("cpu-0")  # it keeps no activations from then on, and rounds otherwise
    with monkeypatch.context() as patched:
        limit_memory(patched, tokens=5)
        with pytest.raises(Final, match=r"one sequence of \d+ tokens: lower MAX_SEQUENCE_TOKENS"):
            run(trainer, make_request(tmp_path, base_model, two_sided(), name="a"))
    run(trainer, make_request(tmp_path, base_model, two_sided(), name="b"))


def test_micro_batches_hold_their_limit_and_every_row_once() -> None:
    # Sorted: 9 | 5 5 | 5 4 | 2 2 | 1: three rows of 5 would be 15 tokens, and 2 (1) is less than
    # three quarters of 4 (2).
    lengths = [2, 5, 9, 5, 1, 5, 2, 4]
    batches = micro_batches(lengths, 10)
    grouped = [[lengths[row] for row in rows] for rows in batches]
    assert grouped == [[9], [5, 5], [5, 4], [2, 2], [1]]
    assert sorted(row for rows in batches for row in rows) == list(range(8))


# --- steps ---


def test_the_better_answer_becomes_likelier(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    samples = [
        sample("w", n, n % 2, ("", "Say YES or NO.", "YES" if n % 2 else "NO")) for n in range(4)
    ]

    def margin() -> float:
        assert trainer._model is not None
        model = trainer._model
        prompt = model.chat.encode(
            [model.chat.prompt([{"role": "user", "content": "Say YES or NO."}])]
        )
        scores = []
        for answer in model.chat.encode(["YES", "NO"]):
            tokens = torch.tensor([prompt[0] + answer])
            with torch.no_grad():
                scores.append(float(full_logprobs(model, tokens)[0, len(prompt[0]) - 1 : -1].sum()))
        return scores[0] - scores[1]

    parent, margins = None, []
    for number in range(4):
        request = make_request(
            tmp_path, base_model, samples, parent, f"s{number}", learning_rate=3e-3
        )
        result = run(trainer, request)
        parent = request.output_dir
        margins.append(margin())
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 0.5
    assert (result.optimizer_steps, result.device) == (1, "cpu")
    assert result.metrics["kl"] != 0
    assert result.mfu is not None
    assert result.mfu > 0
    assert result.peak_memory_bytes is not None
    assert 50e6 < result.peak_memory_bytes < 50e9
    assert set(result.seconds_by_phase) == {
        "load", "tokenize", "forward_backward", "optimizer", "checkpoint"
    }  # fmt: skip


def test_no_answer_becomes_less_likely_where_it_has_the_lowest_reward(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    silent = Call("", "Say YES or NO.", "", ended=True)
    samples = [sample("w", n, 1.0, ("", "Say YES or NO.", "YES")) for n in range(2)]
    samples += [Sample("w", f"w-{n}", 0.0, [silent]) for n in range(2, 4)]

    def margin() -> float:
        """How much likelier it is to end at once than to say NO, which nobody said."""
        assert trainer._model is not None
        chat = trainer._model.chat
        (prompt,) = chat.encode([chat.prompt(silent.prompt())])
        first = [chat.end_ids[0], chat.encode(["NO"])[0][0]]
        ends, says_no = (torch.tensor([[*prompt, token]]) for token in first)
        with torch.no_grad():
            scores = [full_logprobs(trainer._model, tokens)[0, -2] for tokens in (ends, says_no)]
        return float(scores[0] - scores[1])

    parent, margins = None, []
    for number in range(4):
        request = make_request(
            tmp_path, base_model, samples, parent, f"s{number}", learning_rate=3e-3
        )
        assert run(trainer, request).sequences == 4
        parent = request.output_dir
        margins.append(margin())
    assert margins[-1] < margins[0] - 0.2


def test_a_step_repeated_in_another_process_gives_the_same_weights(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """As after a crash: a new trainer, the same request, the parent's files."""
    first = make_request(tmp_path, base_model, two_sided(), name="first")
    run(trainer, first)
    outputs = []
    for name, one in (("warm", trainer), ("fresh", TorchTrainer("cpu-0"))):
        run(one, make_request(tmp_path, base_model, random_samples(4), name=f"other-{name}"))
        second = make_request(
            tmp_path, base_model, two_sided(), first.output_dir, name, micro_batch_tokens=200
        )
        run(one, second)
        outputs.append(weights(second.output_dir))
    assert outputs[0].keys() == outputs[1].keys()
    before = weights(first.output_dir)
    for key, tensor in outputs[0].items():
        torch.testing.assert_close(tensor, outputs[1][key], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(before[key], outputs[0][key]) for key in before)
    saved = torch.load(Path(second.output_dir) / "optimizer.pt", weights_only=True)
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {2}


def test_the_learning_rate_grows_over_the_first_steps_of_a_lineage(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    # 4 warm-up steps to a rate of 0.001: a quarter each; the parent's files say which step it is.
    parent, rates = None, []
    for number in range(5):
        request = make_request(
            tmp_path, base_model, two_sided(1), parent, f"s{number}", warmup_steps=4
        )
        rates.append(run(trainer, request).metrics["learning_rate"])
        parent = request.output_dir
    assert rates == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, 0.001])
    none = make_request(tmp_path, base_model, two_sided(1), None, "none", warmup_steps=0)
    assert run(trainer, none).metrics["learning_rate"] == 0.001


def test_a_window_without_signal_takes_no_part_and_fails_no_step(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    close = [sample("same", n, n * 1e-297, ("", "u", "r")) for n in range(3)]
    result = run(trainer, make_request(tmp_path, base_model, [*close, *two_sided(1)], name="a"))
    assert result.sequences == 8
    with pytest.raises(Final, match=r"3 trajectories have no advantage.*MIN_REWARD_SPREAD"):
        run(trainer, make_request(tmp_path, base_model, close, name="b"))


def test_the_files_are_a_peft_adapter_and_scratch_is_gone(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    request = make_request(tmp_path, base_model, two_sided())
    phases: list[Progress] = []
    trainer.step(request, phases.append)
    assert sorted(p.name for p in Path(request.output_dir).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "proof.json",
        "trainer_state.json",
    ]  # fmt: skip
    config = json.loads((Path(request.output_dir) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_model
    assert (config["r"], len(config["target_modules"])) == (8, 7)
    assert sorted(p.name for p in Path(request.scratch_dir).iterdir()) == ["out", "samples.jsonl"]
    assert {p.phase for p in phases} == {"load", "tokenize", "train", "save"}


def test_another_lora_rank_than_the_parents_is_refused(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    first = make_request(tmp_path, base_model, two_sided(), name="a")
    run(trainer, first)
    second = make_request(tmp_path, base_model, two_sided(), first.output_dir, "b", lora_rank=4)
    with pytest.raises(UserError, match=r"LORA_RANK is 4, but tiny was trained with 8"):
        run(trainer, second)


@pytest.mark.parametrize("damage", ["adapter_model.safetensors", "optimizer.pt", None])
def test_a_parent_that_cannot_be_read_says_so(
    trainer: TorchTrainer, base_model: str, tmp_path: Path, damage: str | None
) -> None:
    first = make_request(tmp_path, base_model, two_sided(), name="a")
    run(trainer, first)
    parent = Path(first.output_dir)
    if damage:
        (parent / damage).write_bytes((parent / damage).read_bytes()[:100])
    else:
        parent = parent / "missing"
    with pytest.raises(CheckpointUnreadable, match="cannot read the checkpoint"):
        run(trainer, make_request(tmp_path, base_model, two_sided(), str(parent), "b"))


def test_a_base_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^BASE_MODEL=.*cannot be loaded"):
        run(TorchTrainer("cpu-0"), make_request(tmp_path, str(tmp_path), two_sided()))


def test_attention_of_another_kind_is_refused(tmp_path: Path) -> None:
    """GPT-OSS has sinks, which torch's attention would leave out without a word."""
    base_model = make_tiny_model(tmp_path / "sinks")
    config = GptOssConfig(
        vocab_size=320, hidden_size=32, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_local_experts=2,
        num_experts_per_tok=1, pad_token_id=0,
    )  # fmt: skip
    GptOssForCausalLM(config).save_pretrained(base_model)
    with pytest.raises(UserError, match="does not support an attention"):
        LanguageModel(base_model, torch.device("cpu"))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    base_model = make_tiny_model(tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = tmp_path / "bare" / name
        if name.endswith("json"):
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            path.write_text(json.dumps(config))
        else:
            path.unlink(missing_ok=True)
    with pytest.raises(UserError, match="has no chat template"):
        run(TorchTrainer("cpu-0"), make_request(tmp_path, base_model, two_sided()))


def test_a_gpu_slot_without_cuda_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="sees no GPU"):
        TorchTrainer("GPU-1234")
