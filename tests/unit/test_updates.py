"""Recipes of the torch trainer: passes, mini-batches, ratios, references, and what they change."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from safetensors.torch import load_file

from babylon_tasks.records.steps import Progress, Sample, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import EvaluateRequest
from tests.unit.first_update import first_gradients
from tests.unit.tiny import hyperparameters, make_request, make_tiny_model, sample, two_sided
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch import gradients, policies, updates
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.learning_rate import default_rate, learning_rate
from workers.trainer.torch.meter import Meter
from workers.trainer.torch.policies import with_policies
from workers.trainer.torch.sequences import Sequences
from workers.trainer.torch.tokenized import advantages, tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer
from workers.trainer.torch.updates import step_share

# ART correlates the recorded logprobs, of which there are none.
pytestmark = pytest.mark.filterwarnings("ignore:cov")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trainer() -> TorchTrainer:
    return TorchTrainer("cpu-0")


def run(trainer: TorchTrainer, request: StepRequest) -> StepResult:
    return trainer.step(request, lambda progress: None)


def weights(request: StepRequest) -> torch.Tensor:
    """One flat vector."""
    tensors = load_file(Path(request.output_dir) / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def optimizer_steps(request: StepRequest) -> int:
    state = json.loads((Path(request.output_dir) / "trainer_state.json").read_text())
    return int(state["optimizer_steps"])


def chain(
    trainer: TorchTrainer, folder: Path, base_model: str, steps: Sequence[list[Sample]]
) -> StepRequest:
    """One step after the other of a single update each; returns the last."""
    parent, request = None, None
    for number, samples in enumerate(steps):
        request = make_request(
            folder, base_model, samples, parent, f"chain{number}", kl_penalty=0.0
        )
        run(trainer, request)
        parent = request.output_dir
    assert request is not None
    return request


# --- passes and mini-batches ---


def test_a_step_as_it_always_was_gives_the_weights_that_it_always_gave(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """Frozen from before recipes had passes and mini-batches; another CPU rounds otherwise."""
    request = make_request(tmp_path, base_model, two_sided())
    result = run(trainer, request)
    assert result.metrics["loss"] == pytest.approx(3.1404604613780975, rel=1e-6)
    assert result.metrics["grad_norm"] == pytest.approx(2.2174322605133057, rel=1e-5)
    assert float(weights(request).double().abs().sum()) == pytest.approx(1443.91632, rel=1e-6)
    second = make_request(tmp_path, base_model, two_sided(3), request.output_dir, "second")
    metrics = run(trainer, second).metrics
    assert metrics["kl"] == pytest.approx(0.11118839988083853, rel=1e-4)
    assert float(weights(second).double().abs().sum()) == pytest.approx(
        1480.8037722061272, rel=1e-6
    )


def test_two_passes_are_two_steps_on_the_same_window(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    window = two_sided(1)
    once = make_request(tmp_path, base_model, window, name="twice", kl_penalty=0.0, passes=2)
    result = run(trainer, once)
    assert (result.optimizer_steps, optimizer_steps(once)) == (2, 2)
    apart = chain(trainer, tmp_path, base_model, [window, window])
    assert optimizer_steps(apart) == 2
    torch.testing.assert_close(weights(once), weights(apart), rtol=0, atol=1e-6)


def test_a_window_an_update_is_a_step_a_window(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """Weights and advantages are normalised by window, so a backlog teaches as much as no backlog.

    The second window has larger differences and fewer answers than the first; the third none that
    teach, and no update is for it.
    """
    one = two_sided(1)
    two = [sample("x", n, 9.0 * n, ("", f"momentum {n}", "SELL " * (1 + n))) for n in range(2)]
    none = [sample("y", n, 1.0, ("", "rise", "HOLD")) for n in range(2)]
    request = make_request(
        tmp_path, base_model, [*one, *two, *none], name="a", kl_penalty=0.0, windows_per_update=1
    )
    result = run(trainer, request)
    assert (result.optimizer_steps, optimizer_steps(request)) == (2, 2)
    apart = chain(trainer, tmp_path, base_model, [one, two])
    torch.testing.assert_close(weights(request), weights(apart), rtol=0, atol=1e-6)
    whole = make_request(tmp_path, base_model, [*one, *two, *none], name="b", kl_penalty=0.0)
    assert run(trainer, whole).optimizer_steps == 1


def test_passes_are_outside_and_mini_batches_inside(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    samples = two_sided(3)
    request = make_request(
        tmp_path, base_model, samples, kl_penalty=0.0, windows_per_update=2, passes=2
    )
    assert run(trainer, request).optimizer_steps == 4
    apart = chain(trainer, tmp_path, base_model, [samples[:8], samples[8:]] * 2)
    torch.testing.assert_close(weights(request), weights(apart), rtol=0, atol=2e-6)


def test_a_mini_batch_that_teaches_nothing_is_passed_over(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """Without negatives a window whose better answers are too long has nothing left."""
    bad = [sample("w9", n, n, ("", "rise " * (400 * n + 1), "YES")) for n in range(2)]
    request = make_request(
        tmp_path, base_model, [*two_sided(1), *bad], negative_scale=0.0, windows_per_update=1,
        max_sequence_tokens=200, passes=3,
    )  # fmt: skip
    result = run(trainer, request)
    assert (result.optimizer_steps, result.dropped_sequences) == (3, 1)


def test_progress_counts_all_passes(trainer: TorchTrainer, base_model: str, tmp_path: Path) -> None:
    """16 calls: 3 passes, the policy before and after, and the base model: 6 x 16."""
    request = make_request(
        tmp_path, base_model, two_sided(), passes=3, windows_per_update=1, micro_batch_tokens=100
    )
    seen: list[Progress] = []
    trainer.step(request, seen.append)
    done = [one.done for one in seen if one.phase == "train"]
    assert {one.total for one in seen if one.phase == "train"} == {96}
    assert done == sorted(done)
    assert done[-1] == 96
    shares = [one.share for one in seen]
    assert None not in shares
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, updates.SPAN[1])


def test_no_report_drops_the_loss_or_the_speed(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """Not in the passes for the penalty, nor in the last ones, nor while it saves."""
    request = make_request(
        tmp_path, base_model, two_sided(), windows_per_update=1, micro_batch_tokens=100
    )
    seen: list[Progress] = []
    result = trainer.step(request, seen.append)
    passes = [one for one in seen if one.phase == "train"]
    assert all(one.tokens_per_second for one in passes)
    first = next(number for number, one in enumerate(passes) if one.loss is not None)
    assert passes[first - 1].done >= 32  # the policy at its start, and the base model
    assert all(one.loss is not None for one in passes[first:])
    saves = [one for one in seen if one.phase == "save"]
    assert [(one.loss, one.share) for one in saves] == [(passes[-1].loss, updates.SPAN[1])]
    assert result.loss is not None


def test_the_loss_told_is_that_of_the_tokens_so_far(
    trainer: TorchTrainer,
    base_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the part of the sum: a watcher would see it grow from nothing."""
    monkeypatch.setattr(gradients, "TELL_SECONDS", 0.0)
    alike = [sample("w0", n, n % 2, ("", "Rise or fall?", "YES")) for n in range(8)]
    request = make_request(
        tmp_path, base_model, alike, micro_batch_tokens=1, kl_penalty=0.0, negative_scale=1.0
    )
    seen: list[Progress] = []
    trainer.step(request, seen.append)
    losses = [one.loss for one in seen if one.phase == "train" and one.loss is not None]
    assert len(losses) >= 8
    assert abs(losses[0]) > 0.1


def test_out_of_memory_begins_only_the_update_at_hand_again(
    trainer: TorchTrainer, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second micro-batch of the second update; without activations from then on."""
    wanted = {"windows_per_update": 1, "passes": 2, "micro_batch_tokens": 200}
    whole = make_request(tmp_path, base_model, two_sided(), name="whole", **wanted)
    micro_batches = run(trainer, whole).metrics["micro_batches"]
    assert micro_batches >= 8
    calls: list[int] = []
    backward = gradients._Attempt._backward
    fails_at = int(micro_batches) // 4 + 2

    def limited(self: object, batch: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(self, batch)

    monkeypatch.setattr(gradients._Attempt, "_backward", limited)
    again = make_request(tmp_path, base_model, two_sided(), name="again", **wanted)
    result = run(TorchTrainer("cpu-0"), again)  # it rounds otherwise from now on
    assert result.optimizer_steps == 4
    assert len(calls) == micro_batches + 2
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=1e-5)


def test_the_work_is_that_of_what_is_trained(
    trainer: TorchTrainer, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes, two of the policy and one of the base, over the window that teaches alone."""
    seen: list[tuple[int, int, Passes]] = []

    def noted(shape: object, lengths: list[int], trained: int, passes: Passes) -> float:
        seen.append((len(lengths), trained, passes))
        return 1.0

    monkeypatch.setattr("workers.trainer.torch.trainer.step_flops", noted)
    bad = [sample("w9", n, n, ("", "rise " * (400 * n + 1), "YES")) for n in range(2)]
    request = make_request(
        tmp_path, base_model, [*two_sided(1), *bad], negative_scale=0.0, windows_per_update=1,
        max_sequence_tokens=200, passes=3,
    )  # fmt: skip
    result = run(trainer, request)
    assert seen == [(8, result.windows["w0"].trainable_tokens, Passes(3, 2, 1))]


def test_a_part_has_the_sequences_and_what_was_recorded_of_them() -> None:
    whole = Sequences()
    whole.add([1, 2], [3, 4], 1.0, 0.5, [-0.1, -0.2])
    whole.add([5], [6], -1.0, 1.0)
    whole.add([7], [8, 9], 2.0, 0.5, [-0.3])
    part = whole.part(1, 3).packed(0.0)
    assert part["tokens"].tolist() == [[5, 6, 7, 8, 9]]
    assert part["assistant_mask"].tolist() == [[False, True, False, True, True]]
    assert part["logprobs"][0].isnan().tolist() == [True, True, True, False, True]
    assert float(part["logprobs"][0, 3]) == pytest.approx(-0.3)
    # |-1| x 1 + 2 x 0.5 x 2 tokens = 3 over weights 1 + 0.5 x 2 = 2: 1.5 is their mean magnitude.
    assert part["advantages"][0].tolist() == pytest.approx([0, -2 / 3, 0, 4 / 3, 4 / 3])


# --- ratios and references ---


def moved_model(base_model: str) -> LanguageModel:
    """A model whose adapter has moved away from the base model."""
    model = LanguageModel(base_model, torch.device("cpu"))
    model.add_adapter(8, 16, seed=3)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def tensors_of(model: LanguageModel, samples: list[Sample]) -> StepTensors:
    tokenized = tokenize_groups(model.chat, trajectory_groups(samples), 1024)
    return StepTensors.from_packed(tokenized.sequences.packed(0.7))


def recorded_everywhere(step: StepTensors, logprobs_s: torch.Tensor) -> StepTensors:
    """The same tensors, as if these log-probabilities had been recorded."""
    mask = step.tensors["assistant_mask"]
    logprobs = torch.where(mask, logprobs_s, math.nan)
    return dataclasses.replace(step, tensors={**step.tensors, "logprobs": logprobs})


def logprobs_by(model: LanguageModel, step: StepTensors) -> torch.Tensor:
    return policies.logprobs_by(model, step, 4096, Meter(0, 0, Passes(), lambda progress: None))


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], times: float = 1.0) -> None:
    one = torch.cat([gradient.flatten() for gradient in ours])
    other = times * torch.cat([gradient.flatten() for gradient in theirs])
    assert float(other.norm()) > 0
    assert float((one - other).norm() / other.norm()) < 1e-4


@pytest.mark.parametrize(
    ("cap", "times", "counts"), [(2.0, 1.9, 1.9), (2.0, 8.0, 2.0), (2.0, 0.5, 0.5), (5.0, 8.0, 5.0)]
)
def test_a_ratio_counts_up_to_the_cap(
    base_model: str, cap: float, times: float, counts: float
) -> None:
    """The model says each token `times` as often as who answered."""
    model = moved_model(base_model)
    step = tensors_of(model, two_sided())
    plain, _ = first_gradients(model, step, kl_penalty=0.0)
    said = recorded_everywhere(step, logprobs_by(model, step) - math.log(times))
    found, totals = first_gradients(model, said, kl_penalty=0.0, ratio_cap=cap)
    assert_same(found, plain, counts)
    ratios = totals.ratios.metrics(step.trained_tokens)
    assert ratios["ratio_mean"] == pytest.approx(counts, rel=1e-4)
    assert ratios["ratio_clipped"] == float(times > cap)


def test_the_base_model_stands_for_what_was_not_recorded(base_model: str) -> None:
    """Its log-probabilities count as recorded ones do, but only for the others."""
    model = moved_model(base_model)
    step = tensors_of(model, two_sided())
    with model.as_base():
        base_s = logprobs_by(model, step)
    found, totals = first_gradients(model, step, kl_penalty=0.0, unrecorded_ratio="base")
    as_recorded, _ = first_gradients(model, recorded_everywhere(step, base_s), kl_penalty=0.0)
    plain, _ = first_gradients(model, step, kl_penalty=0.0)
    assert_same(found, as_recorded)
    with pytest.raises(AssertionError):
        assert_same(found, plain)
    assert totals.ratios.metrics(step.trained_tokens) == {"logprobs_share": 0.0}
    all_recorded = recorded_everywhere(step, logprobs_by(model, step) - math.log(3))
    known, _ = first_gradients(model, all_recorded, kl_penalty=0.0, unrecorded_ratio="base")
    assert_same(known, plain, 3.0)


def test_a_token_whose_probability_halved_since_the_start_counts_half(base_model: str) -> None:
    """`parent`: exp(now - start); at the start itself it is 1, whatever the base model says."""
    model = moved_model(base_model)
    step = tensors_of(model, two_sided())
    plain, _ = first_gradients(model, step, kl_penalty=0.0)
    found, totals = first_gradients(model, step, kl_penalty=0.0, unrecorded_ratio="parent")
    assert_same(found, plain)
    assert totals.ratios.metrics(step.trained_tokens) == {"logprobs_share": 0.0}
    wanted = hyperparameters(kl_penalty=0.0, unrecorded_ratio="parent")
    begun = with_policies(model, step, wanted, Meter(0, 0, Passes(), lambda progress: None))
    mask = step.tensors["assistant_mask"]
    halved = begun.tensors["logprobs"] + mask * math.log(2)
    later = dataclasses.replace(begun, tensors={**begun.tensors, "logprobs": halved})
    found, _ = first_gradients(model, later, kl_penalty=0.0)
    assert_same(found, plain, 0.5)


def test_the_parent_as_reference_is_no_penalty_before_the_policy_moves(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    model = moved_model(base_model)
    step = tensors_of(model, two_sided())
    plain, _ = first_gradients(model, step, kl_penalty=0.0)
    held, totals = first_gradients(model, step, kl_penalty=0.5, kl_reference="parent")
    assert totals.drift == 0
    assert_same(held, plain)
    requests = [
        make_request(
            tmp_path, base_model, two_sided(1), name=f"{kl}", kl_penalty=kl,
            kl_reference="parent", passes=2,
        )
        for kl in (0.0, 2.0)
    ]  # fmt: skip
    results = [run(trainer, request) for request in requests]
    assert "kl" not in results[0].metrics
    assert results[1].metrics["kl"] != 0  # of the second pass
    assert not torch.equal(weights(requests[0]), weights(requests[1]))


def test_in_later_updates_the_penalty_is_on_what_the_policy_has_become(base_model: str) -> None:
    """Own log-probabilities by the pass with gradients, where `start` is another policy's."""
    model = moved_model(base_model)
    step = tensors_of(model, two_sided())
    wanted = hyperparameters(kl_penalty=0.5)
    meter = Meter(0, 0, Passes(), lambda progress: None)
    with_both = with_policies(model, step, wanted, meter)
    mean = policies.mean_drift(model, with_both, 4096)
    expected, _ = first_gradients(model, step, kl_penalty=0.5)
    stale = dataclasses.replace(
        with_both,
        tensors={**with_both.tensors, "start": with_both.tensors["start"] - 7.0},
    )
    model.adapted.zero_grad()
    totals = gradients.accumulate_within_memory(
        model, stale, gradients.Objective(5.0, 0.5, mean, at_start=False), 4096, meter
    )
    assert_same([p.grad for p in model.parameters()], expected)
    assert totals.drift == pytest.approx(mean, rel=1e-4)


def test_passes_cost_no_forward_pass_more(
    trainer: TorchTrainer, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients: the start and the base model before, and the end after, of all rows."""
    rows: list[int] = []
    logprobs = LanguageModel.logprobs

    def counted(self: LanguageModel, tokens: torch.Tensor, predicts: torch.Tensor) -> object:
        if not torch.is_grad_enabled():
            rows.append(tokens.shape[0])
        return logprobs(self, tokens, predicts)

    monkeypatch.setattr(LanguageModel, "logprobs", counted)
    many = {"passes": 4, "windows_per_update": 1, "unrecorded_ratio": "base"}
    run(trainer, make_request(tmp_path, base_model, two_sided(), **many))
    proof = 2  # of the step and of the base model, of one text
    assert sum(rows) == 3 * 16 + proof


# --- advantages, rates, and how far the policy moved ---


def test_an_advantage_without_its_groups_deviation_is_the_reward_less_the_mean() -> None:
    # Rewards 1, 2, 6: mean 3; deviation sqrt((4 + 1 + 9) / 3) = 2.1602.
    group = [sample("w", n, reward, ("", "u", "r")) for n, reward in enumerate((1.0, 2.0, 6.0))]
    assert advantages(group, by_deviation=False) == [-2.0, -1.0, 3.0]
    assert advantages(group) == pytest.approx([-0.9258, -0.4629, 1.3887], abs=1e-4)
    same = [sample("w", n, 1.0, ("", "u", "r")) for n in range(3)]
    assert advantages(same, by_deviation=False) == [0.0] * 3


def test_a_recipe_without_deviation_lets_a_decided_window_teach_more(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """In one update: with the deviation, the scale of a window's rewards makes no difference."""
    one = two_sided(1)
    two = [msgspec.structs.replace(s, window_id="x", reward=9 * s.reward) for s in two_sided(2)[4:]]
    results = {
        (by, name): weights_after(trainer, tmp_path, base_model, samples, by)
        for by in (True, False)
        for name, samples in (
            ("scaled", [*one, *two]),
            ("plain", [*one, *(msgspec.structs.replace(s, reward=s.reward / 9) for s in two)]),
        )
    }
    torch.testing.assert_close(results[True, "scaled"], results[True, "plain"], rtol=0, atol=1e-5)
    assert float((results[False, "scaled"] - results[False, "plain"]).abs().max()) > 1e-4


def weights_after(
    trainer: TorchTrainer, folder: Path, base_model: str, samples: list[Sample], by: bool
) -> torch.Tensor:
    request = make_request(
        folder, base_model, samples, name=f"d{len(list(folder.iterdir()))}", group_deviation=by
    )
    run(trainer, request)
    return weights(request)


def test_the_rate_follows_from_the_models_size_where_none_is_set(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    assert default_rate(2000) == 5e-4
    assert default_rate(500) == 1e-3  # a quarter of the size, twice the rate
    request = make_request(tmp_path, base_model, two_sided(1), learning_rate=None)
    assert run(trainer, request).metrics["learning_rate"] == default_rate(128)


def test_warm_up_counts_the_updates_of_the_lineage(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    # Three updates a step and ten to the full rate of 0.001: the last of a step is the third,
    # the sixth.
    wanted = hyperparameters(warmup_steps=10)
    rates = [learning_rate(wanted, 128, before) for before in (0, 2, 9, 10)]
    assert rates == pytest.approx([1e-4, 3e-4, 1e-3, 1e-3])
    first = make_request(tmp_path, base_model, two_sided(1), None, "a", warmup_steps=10, passes=3)
    second = make_request(
        tmp_path, base_model, two_sided(1), first.output_dir, "b", warmup_steps=10, passes=3
    )
    found = [run(trainer, request).metrics["learning_rate"] for request in (first, second)]
    assert found == pytest.approx([3e-4, 6e-4])
    assert optimizer_steps(second) == 6


def test_the_policys_change_is_that_of_its_answers_log_probabilities(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    """As an evaluation of the checkpoints before and after tells it: one call a trajectory."""
    samples = [
        sample(f"w{w}", n, n, ("", f"momentum {n}" * (w + 1), "BUY it now " * (n + 1)))
        for w in range(2)
        for n in range(4)
    ]
    request = make_request(tmp_path, base_model, samples, passes=2, windows_per_update=1)
    result = run(trainer, request)

    def logprobs(checkpoint: str | None) -> list[float]:
        asked = EvaluateRequest(
            model_name="tiny",
            base_model=base_model,
            checkpoint=checkpoint,
            samples_path=request.samples_path,
            max_sequence_tokens=1024,
            micro_batch_tokens=4096,
        )
        answer = trainer.evaluate(asked, lambda progress: None)
        return [one.logprob for one in answer.trajectories]

    pairs = zip(logprobs(None), logprobs(request.output_dir), strict=True)
    moved = [abs(after - before) for before, after in pairs]
    assert result.metrics["policy_change"] == pytest.approx(sum(moved) / 8, rel=1e-3)
    assert result.metrics["policy_change"] > 0.1


def test_a_tiny_rate_changes_no_policy(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    request = make_request(tmp_path, base_model, two_sided(1), learning_rate=1e-12)
    assert run(trainer, request).metrics["policy_change"] == pytest.approx(0, abs=1e-5)


def test_a_step_that_goes_too_far_is_shortened_to_the_limit(
    trainer: TorchTrainer, base_model: str, tmp_path: Path
) -> None:
    def step(name: str, most: float | None) -> tuple[dict[str, float], torch.Tensor]:
        request = make_request(
            tmp_path, base_model, two_sided(2), name=name, windows_per_update=1, passes=2,
            max_policy_change=most,
        )  # fmt: skip
        metrics = run(trainer, request).metrics
        tensors = load_file(Path(request.output_dir) / "adapter_model.safetensors")
        # B begins at zero, so where it is shows how far the step went.
        return metrics, torch.cat([tensors[n].flatten() for n in sorted(tensors) if "lora_B" in n])

    whole, far = step("whole", None)
    change = whole["policy_change"]
    assert torch.equal(step("wide", change)[1], far)  # two windows may go twice as far
    together = make_request(
        tmp_path, base_model, two_sided(2), name="together", max_policy_change=change / 4
    )  # one update for both windows: the limit is that of two all the same
    alone = make_request(tmp_path, base_model, two_sided(2), name="alone")
    free = run(trainer, alone).metrics["policy_change"]
    share = run(trainer, together).metrics["step_share"]
    assert share == pytest.approx(min(1.0, 2 * change / 4 / free))
    half, near = step("half", change / 4)
    assert half["step_share"] == pytest.approx(0.5)
    assert half["policy_change"] == pytest.approx(change / 2)
    assert torch.allclose(near, far / 2, atol=1e-7)


def test_the_share_of_a_step_by_hand() -> None:
    assert step_share(0.1, None, 1) == 1
    assert step_share(0.1, 0.1, 1) == 1
    assert step_share(0.4, 0.1, 1) == 0.25
    assert step_share(0.4, 0.1, 2) == 0.5  # two windows may go twice as far


def test_changes_are_of_whole_answers_by_hand() -> None:
    # Two answers of 2 and 1 tokens: moved by -1 + 3 = 2 and -0.5: 2 and 0.5 nats.
    sequences = Sequences()
    sequences.add([1], [2, 3], 1.0, 1.0)
    sequences.add([4], [5], -1.0, 1.0)
    step = StepTensors.from_packed(sequences.packed(0.0))
    start = torch.tensor([0.0, -3.0, -4.0, 0.0, -1.0])
    after = torch.tensor([0.0, -4.0, -1.0, 0.0, -1.5])
    step = dataclasses.replace(step, tensors={**step.tensors, "start": start})
    assert policies.changes(step, after).tolist() == [2.0, 0.5]
    turned = dataclasses.replace(step, starts=step.starts[::-1], lengths=step.lengths[::-1])
    assert policies.changes(turned, after).tolist() == [0.5, 2.0]
