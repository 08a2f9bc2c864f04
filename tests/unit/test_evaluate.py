"""Evaluations and generations by a real, tiny model, against plain transformers and peft."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from babylon_tasks.errors import CheckpointUnreadable, Final
from babylon_tasks.records.steps import Call, Progress, Sample
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from tests.unit.tiny import hyperparameters, make_request, make_tiny_model, sample, two_sided
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch import memory
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.checkpoint import policy
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.policies import with_policies
from workers.trainer.torch.tokenized import tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer

TEMPLATE = (
    "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
BARE_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trainer() -> TorchTrainer:
    return TorchTrainer("cpu-0")


@pytest.fixture(scope="module")
def checkpoint(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A step whose adapter changes much."""
    folder = tmp_path_factory.mktemp("step")
    request = make_request(folder, base_model, two_sided(), learning_rate=0.02)
    TorchTrainer("cpu-0").step(request, ignore)
    return request.output_dir


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture(params=[True, False], ids=["checkpoint", "base"])
def asked(request: pytest.FixtureRequest, checkpoint: str) -> str | None:
    return checkpoint if request.param else None


def plain(base_model: str, checkpoint: str | None) -> torch.nn.Module:
    network = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    return PeftModel.from_pretrained(network, checkpoint) if checkpoint else network


def logprobs_of(network: torch.nn.Module, tokens: list[int]) -> list[float]:
    """Of each token but the first, by a forward pass of transformers."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([tokens])).logits[0, :-1].float()
    following = torch.tensor(tokens[1:])[:, None]
    return torch.log_softmax(logits, -1).gather(1, following).squeeze(1).tolist()


def evaluate_request(folder: Path, base_model: str, samples: list[Sample], **changes: object):
    """The request for a step on these samples, made one for an evaluation."""
    step = make_request(folder, base_model, samples)
    request = EvaluateRequest(
        model_name=step.model_name,
        base_model=base_model,
        checkpoint=None,
        samples_path=step.samples_path,
        max_sequence_tokens=step.hyperparameters.max_sequence_tokens,
        micro_batch_tokens=step.hyperparameters.micro_batch_tokens,
    )
    return msgspec.structs.replace(request, **changes)


def evaluate(trainer: TorchTrainer, request: EvaluateRequest) -> EvaluateResult:
    return trainer.evaluate(request, ignore)


# --- evaluate ---


def test_log_probabilities_are_those_of_a_plain_forward_pass(
    trainer: TorchTrainer, base_model: str, asked: str | None, tmp_path: Path
) -> None:
    samples = [*two_sided(), sample("alone", 1, 0.5, ("", "no advantage", "HOLD"))]
    request = evaluate_request(tmp_path, base_model, samples, checkpoint=asked)
    result = evaluate(trainer, request)
    network, tokenizer = plain(base_model, asked), AutoTokenizer.from_pretrained(base_model)
    for one, given in zip(result.trajectories, samples, strict=True):
        expected, tokens = 0.0, 0
        for call in given.calls:
            prompt = TEMPLATE.format(call.system, call.user)
            prompt = prompt if call.system else BARE_TEMPLATE.format(call.user)
            before = tokenizer(prompt)["input_ids"]
            answer = tokenizer(call.response + END)["input_ids"]
            expected += sum(logprobs_of(network, before + answer)[len(before) - 1 :])
            tokens += len(answer)
        assert (one.trajectory_id, one.tokens) == (given.trajectory_id, tokens)
        assert one.logprob == pytest.approx(expected, abs=1e-4)
    assert (result.calls, result.dropped, result.device) == (17, 0, "cpu")
    assert result.tokens == sum(one.tokens for one in result.trajectories)
    assert result.seconds > 0


def test_log_probabilities_are_those_that_a_step_starts_from(
    trainer: TorchTrainer, base_model: str, checkpoint: str, tmp_path: Path
) -> None:
    """What the KL penalty of a step on this parent compares, added by trajectory.

    All samples have an advantage, so a step tokenizes all of them.
    """
    samples = two_sided()
    request = evaluate_request(tmp_path, base_model, samples, checkpoint=checkpoint)
    base = msgspec.structs.replace(request, checkpoint=None)
    model = LanguageModel(base_model, torch.device("cpu"))
    tokenized = tokenize_groups(model.chat, trajectory_groups(samples), 1024)
    step = StepTensors.from_packed(tokenized.sequences.packed(0.7))
    with policy(model, checkpoint):
        step = with_policies(model, step, hyperparameters(), Meter(0, 0, Passes(), ignore))
    kl_s = (step.tensors["start"] - step.tensors["reference"]).double()
    kls = [float(kl_s[step.trained_at([row])].sum()) for row in range(len(step.lengths))]
    ours, theirs = evaluate(trainer, request), evaluate(trainer, base)
    found = [
        one.logprob - other.logprob
        for one, other in zip(ours.trajectories, theirs.trajectories, strict=True)
    ]
    assert found == pytest.approx(
        [a + b for a, b in zip(kls[::2], kls[1::2], strict=True)], abs=1e-4
    )
    assert ours.tokens == tokenized.sequences.trainable_tokens
    assert max(map(abs, found)) > 0.1


def test_micro_batches_and_what_was_asked_before_change_nothing(
    trainer: TorchTrainer, base_model: str, checkpoint: str, tmp_path: Path
) -> None:
    request = evaluate_request(tmp_path, base_model, two_sided(3), checkpoint=checkpoint)
    whole = evaluate(trainer, request)
    evaluate(trainer, msgspec.structs.replace(request, checkpoint=None))
    parts = evaluate(trainer, msgspec.structs.replace(request, micro_batch_tokens=60))
    assert [one.logprob for one in parts.trajectories] == pytest.approx(
        [one.logprob for one in whole.trajectories], abs=1e-4
    )
    assert evaluate(trainer, request).trajectories == whole.trajectories


def test_what_cannot_be_evaluated_is_dropped_and_counted(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    samples = [
        sample("w", 0, 0.0, ("", "u", "")),
        sample("w", 1, 0.0, ("", "u", ""), ("", "rise " * 99, "YES"), ("", "u", "YES")),
        sample("w", 2, 0.0),
    ]
    request = evaluate_request(tmp_path, base_model, samples, max_sequence_tokens=60)
    result = evaluate(trainer, request)
    assert (result.calls, result.dropped) == (1, 3)
    assert [one.trajectory_id for one in result.trajectories] == ["w-0", "w-1", "w-2"]
    assert [one.tokens > 0 for one in result.trajectories] == [False, True, False]
    assert [one.logprob < 0 for one in result.trajectories] == [False, True, False]
    nothing = evaluate(trainer, evaluate_request(tmp_path, base_model, []))
    assert (nothing.trajectories, nothing.calls, nothing.tokens) == ([], 0, 0)


def test_it_says_what_it_does(trainer: TorchTrainer, base_model: str, tmp_path: Path) -> None:
    beats: list[Progress] = []
    request = evaluate_request(tmp_path, base_model, two_sided(1), micro_batch_tokens=60)
    trainer.evaluate(request, beats.append)
    assert {beat.phase for beat in beats} == {"load", "tokenize", "evaluate"}
    assert (beats[-1].phase, beats[-1].done, beats[-1].share) == ("evaluate", 8, 1.0)
    assert beats[-1].total == 8
    shares = [beat.share for beat in beats]
    assert None not in shares
    assert shares == sorted(shares)
    assert all(beat.tokens_per_second for beat in beats if beat.phase == "evaluate")


def test_weights_that_are_no_numbers_are_told(
    trainer: TorchTrainer, base_model: str, checkpoint: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(checkpoint).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = {k: v * torch.nan for k, v in load_file(broken / "adapter_model.safetensors").items()}
    save_file(weights, broken / "adapter_model.safetensors")
    request = evaluate_request(tmp_path, base_model, two_sided(1), checkpoint=str(broken))
    with pytest.raises(Final, match=r"trajectory w0-0 are not finite: are the weights of .*broken"):
        evaluate(trainer, request)
    with pytest.raises(Final, match="prompt 1 are not finite"):
        generate(trainer, base_model, PROMPTS[:1], checkpoint=str(broken))


def test_a_checkpoint_that_is_away_says_so(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    request = evaluate_request(tmp_path, base_model, two_sided(1), checkpoint=str(tmp_path / "no"))
    with pytest.raises(CheckpointUnreadable, match="cannot read the checkpoint"):
        evaluate(trainer, request)


def test_out_of_memory_halves_the_batch_and_keeps_what_steps_are_made_of(
    base_model: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps begin to save memory where it runs out, and round otherwise from then on."""
    trainer = TorchTrainer("cpu-0")
    request = evaluate_request(tmp_path, base_model, two_sided(3), checkpoint=checkpoint)
    whole, logprobs = evaluate(trainer, request), LanguageModel.logprobs
    most = 100

    def limited(self: LanguageModel, tokens: torch.Tensor, predicts: torch.Tensor) -> object:
        if tokens.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logprobs(self, tokens, predicts)

    monkeypatch.setattr(LanguageModel, "logprobs", limited)
    halved = evaluate(trainer, request)
    assert [one.logprob for one in halved.trajectories] == pytest.approx(
        [one.logprob for one in whole.trajectories], abs=1e-4
    )
    assert trainer._model is not None
    assert not trainer._model.network.is_gradient_checkpointing
    most = 10
    with pytest.raises(Final, match=r"one sequence of \d+ tokens: lower MAX_SEQUENCE_TOKENS"):
        evaluate(trainer, request)


# --- generate ---

PROMPTS = [  # the first two share a batch, so the second is padded
    [{"role": "user", "content": "Say YES or NO."}],
    [{"role": "user", "content": "YES or NO."}],
    [
        {"role": "system", "content": "You are a trading agent."},
        {"role": "user", "content": "Will the market rise or fall? The momentum is strong. " * 3},
    ],
    [{"role": "user", "content": "rise " * 20}],
]


def generate(
    trainer: TorchTrainer, base_model: str, prompts: list[list[dict[str, str]]], **changes: object
) -> GenerateResult:
    request = GenerateRequest(
        model_name="tiny",
        base_model=base_model,
        checkpoint=None,
        prompts=prompts,
        max_tokens=12,
        temperature=0.0,
        seed=5,
    )
    return trainer.generate(msgspec.structs.replace(request, **changes), ignore)


def test_a_prompt_may_have_turns_and_tools(trainer: TorchTrainer, base_model: str) -> None:
    """Over the pipe, as the worker sends it; a template that knows no tools passes over them."""
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"of":1}'}}
    told = Call(
        "", "", "BUY",
        messages=json.dumps([
            {"role": "user", "content": "Buy?"},
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": "12", "tool_call_id": "c"},
        ]),
        tools=json.dumps([{"type": "function", "function": {"name": "f"}}]),
    )  # fmt: skip
    plain_ones = [{key: m[key] for key in ("role", "content")} for m in told.prompt()]
    request = GenerateRequest("tiny", base_model, None, [told.prompt()], 12, 0.0, 5)
    request = msgspec.structs.replace(request, tools=[told.shown_tools()])
    sent = msgspec.json.decode(msgspec.json.encode(request), type=GenerateRequest)
    assert sent == request
    expected = generate(trainer, base_model, [plain_ones])
    assert texts(trainer.generate(sent, ignore)) == texts(expected)


def test_it_says_how_far_the_answers_are(trainer: TorchTrainer, base_model: str) -> None:
    """Token by token: a long answer is no silence."""
    beats: list[Progress] = []
    request = GenerateRequest("tiny", base_model, None, PROMPTS[:2], 8, 0.0, 5, n=2)
    trainer.generate(request, beats.append)
    told = [beat for beat in beats if beat.phase == "generate"]
    shares = [beat.share for beat in told]
    assert shares == sorted(shares)
    assert shares[0] == 1 / 8  # all four at once, and of each one token
    assert (told[-1].done, told[-1].total, told[-1].share) == (4, 4, 1.0)
    assert all(beat.tokens_per_second for beat in told)


def texts(result: GenerateResult) -> list[list[str]]:
    return [[one.text for one in answers] for answers in result.generations]


def test_at_temperature_0_it_is_what_transformers_generates(
    trainer: TorchTrainer, base_model: str, asked: str | None
) -> None:
    """One prompt at a time there, all at once here."""
    result = generate(trainer, base_model, PROMPTS, checkpoint=asked)
    network, tokenizer = plain(base_model, asked), AutoTokenizer.from_pretrained(base_model)
    for (one,), messages in zip(result.generations, PROMPTS, strict=True):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, return_tensors="pt")["input_ids"]
        config = GenerationConfig(max_new_tokens=12, eos_token_id=tokenizer.eos_token_id)
        expected = network.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
        expected = expected[0, prompt.shape[1] :].tolist()
        assert list(one.token_ids) == expected
        assert one.text == tokenizer.decode(expected, skip_special_tokens=True)
        tokens = [*prompt[0].tolist(), *one.token_ids]
        found = logprobs_of(network, tokens)[prompt.shape[1] - 1 :]
        assert list(one.logprobs) == pytest.approx(found, abs=1e-4)
    assert result.tokens == sum(len(one.token_ids) for (one,) in result.generations)
    assert (result.dropped, result.device) == (0, "cpu")


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_log_probabilities_of_drawn_tokens_do_not_know_the_temperature(
    trainer: TorchTrainer, base_model: str, checkpoint: str, temperature: float
) -> None:
    result = generate(
        trainer, base_model, PROMPTS, checkpoint=checkpoint, temperature=temperature, n=3
    )
    network, tokenizer = plain(base_model, checkpoint), AutoTokenizer.from_pretrained(base_model)
    for answers, messages in zip(result.generations, PROMPTS, strict=True):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text)["input_ids"]
        for one in answers:
            found = logprobs_of(network, [*prompt, *one.token_ids])[len(prompt) - 1 :]
            assert list(one.logprobs) == pytest.approx(found, abs=1e-4)


def test_the_same_seed_draws_the_same_and_another_draws_others(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    first = generate(trainer, base_model, PROMPTS, temperature=1.5, n=4)
    evaluate(trainer, evaluate_request(tmp_path, base_model, two_sided(1)))
    torch.manual_seed(99)
    assert generate(trainer, base_model, PROMPTS, temperature=1.5, n=4).generations == (
        first.generations
    )
    fresh = generate(TorchTrainer("cpu-0"), base_model, PROMPTS, temperature=1.5, n=4)
    assert texts(fresh) == texts(first)
    assert texts(generate(trainer, base_model, PROMPTS, temperature=1.5, n=4, seed=6)) != (
        texts(first)
    )
    assert [len(answers) for answers in first.generations] == [4, 4, 4, 4]
    assert all(len({one.text for one in answers}) > 1 for answers in first.generations)


def test_all_tokens_may_be_drawn_not_the_likeliest_50_alone(
    trainer: TorchTrainer, base_model: str
) -> None:
    """An untrained model finds its 320 tokens about equally likely."""
    result = generate(trainer, base_model, PROMPTS, temperature=2.0, n=20)
    network, tokenizer = plain(base_model, None), AutoTokenizer.from_pretrained(base_model)
    text = tokenizer.apply_chat_template(PROMPTS[0], tokenize=False, add_generation_prompt=True)
    with torch.no_grad():
        logits = network(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    likeliest = set(logits.topk(50).indices.tolist())
    assert {one.token_ids[0] for one in result.generations[0]} - likeliest


def test_an_answer_ends_with_its_end_token(trainer: TorchTrainer, base_model: str) -> None:
    """An untrained model says it about once in 320 tokens; other answers of the batch go on."""
    result = generate(trainer, base_model, PROMPTS, temperature=1.0, max_tokens=200, n=6)
    end = AutoTokenizer.from_pretrained(base_model).eos_token_id
    lengths: dict[str, set[int]] = {"stop": set(), "length": set()}
    for one in (one for answers in result.generations for one in answers):
        assert len(one.token_ids) == len(one.logprobs)
        assert (one.token_ids[-1] == end) == (one.finish_reason == "stop")
        assert end not in one.token_ids[:-1]
        assert END not in one.text
        lengths[one.finish_reason].add(len(one.token_ids))
    assert len(lengths["stop"]) > 2
    assert lengths["length"] == {200}


def test_a_prompt_without_room_or_that_the_template_refuses_has_no_answer(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    long = [{"role": "user", "content": "rise " * 9000}]
    refused = [{"role": "user", "content": "refuse me"}]
    picky = make_tiny_model(tmp_path / "picky")
    template = tmp_path / "picky/chat_template.jinja"
    refuse = "{% if messages[0].content == 'refuse me' %}{{ raise_exception('no') }}{% endif %}"
    template.write_text(refuse + template.read_text())
    result = generate(trainer, picky, [long, PROMPTS[0], refused], n=2)
    assert [len(answers) for answers in result.generations] == [0, 2, 0]
    assert result.dropped == 2
    assert generate(trainer, base_model, []).generations == []


def test_it_generates_where_activations_are_not_kept(base_model: str, checkpoint: str) -> None:
    """As after a step that ran out of memory; and steps go on as they did."""
    trainer = TorchTrainer("cpu-0")
    expected = texts(generate(trainer, base_model, PROMPTS, checkpoint=checkpoint))
    assert trainer._model is not None
    assert trainer._model.save_memory()
    assert texts(generate(trainer, base_model, PROMPTS, checkpoint=checkpoint)) == expected
    assert trainer._model.network.is_gradient_checkpointing
    assert trainer._model.network.training


def test_small_batches_give_the_same_answers_at_temperature_0(
    trainer: TorchTrainer, base_model: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(trainer, base_model, PROMPTS, checkpoint=checkpoint, n=2)
    tried: list[int] = []
    micro_batches = memory.micro_batches

    def counted(lengths: list[int], most_tokens: int) -> list[list[int]]:
        batches = micro_batches(lengths, most_tokens)
        tried.append(len(batches))
        return batches

    monkeypatch.setattr(memory, "micro_batches", counted)
    monkeypatch.setattr("workers.trainer.torch.generate.BATCH_TOKENS", 40)
    one_by_one = generate(trainer, base_model, PROMPTS, checkpoint=checkpoint, n=2)
    assert tried == [8]
    assert texts(one_by_one) == texts(expected)
