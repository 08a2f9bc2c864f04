"""The ragged store of a step's sequences, and the advantages that go in; numbers by hand."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch

from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.sequences import Sequences
from workers.trainer.torch.tokenized import advantages


def two_sequences() -> Sequences:
    sequences = Sequences()
    sequences.add([5, 6], [7], advantage=1.0, weight=1.0)
    sequences.add([8], [9, 10, 11], advantage=-1.0, weight=1 / 3)
    return sequences


def test_weights_and_advantages_have_a_mean_of_one() -> None:
    # Weights: (1 x 1 + 3 x 1/3) / 4 tokens = 1/2, so 1 becomes 2 and 1/3 becomes 2/3.
    # Advantages, negative ones halved: (1 x 2 x 1 + 3 x 2/3 x 1/2) / 4 = 3/4,
    # so 1 becomes 4/3 and -1/2 becomes -2/3.
    packed = two_sequences().packed(advantage_balance=0.5)
    assert packed["tokens"].tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert packed["input_pos"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert packed["assistant_mask"].tolist() == [[False, False, True, False, True, True, True]]
    assert packed["group_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    torch.testing.assert_close(packed["weights"], torch.tensor([[0, 0, 2, 0, *[2 / 3] * 3]]))
    torch.testing.assert_close(
        packed["advantages"], torch.tensor([[0, 0, 4 / 3, 0, *[-2 / 3] * 3]])
    )
    assert packed["logprobs"].shape == (1, 7)
    assert packed["logprobs"].isnan().all()


def test_recorded_logprobs_stand_at_their_own_tokens() -> None:
    # 7 has one; of 9, 10, 11 the first two; all else is NaN, which is ART's "not recorded".
    sequences = Sequences()
    sequences.add([5, 6], [7], 1.0, 1.0, recorded=(-0.5,))
    sequences.add([3], [4, 4], 1.0, 1.0)
    sequences.add([8], [9, 10, 11], -1.0, 1 / 3, recorded=(-1.5, -2.5))
    found = sequences.packed(0.5)["logprobs"][0].tolist()
    nan = math.nan
    expected = [nan, nan, -0.5, nan, nan, nan, nan, -1.5, -2.5, nan]
    assert found == pytest.approx(expected, nan_ok=True)
    step = StepTensors.from_packed(sequences.packed(0.5))
    batch = step.take([2, 0], torch.device("cpu"))
    assert batch.recorded_n.tolist() == pytest.approx([-1.5, -2.5, nan, -0.5], nan_ok=True)


def test_a_micro_batch_is_padded_to_its_own_longest() -> None:
    step = StepTensors.from_packed(two_sequences().packed(0.0))
    assert (step.starts, step.lengths, step.trained_tokens) == ([0, 3], [3, 4], 4)
    batch = step.take([1, 0], torch.device("cpu"))
    assert batch.inputs["tokens"].tolist() == [[8, 9, 10, 11], [5, 6, 7, 0]]
    assert batch.inputs["advantages"][1].tolist()[3] == 0
    assert batch.predicts.tolist() == [[True, True, True, False], [False, True, False, False]]
    assert step.take([0], torch.device("cpu")).inputs["tokens"].tolist() == [[5, 6, 7]]


def test_sequences_without_an_advantage_are_not_packed() -> None:
    sequences = Sequences()
    assert not sequences.teach(0.0)
    sequences.add([1], [2], advantage=-1.0, weight=1.0)
    assert sequences.teach(0.5)
    assert not sequences.teach(1.0)  # only what is better than the mean teaches
    with pytest.raises(ValueError, match="no sequence has an advantage"):
        sequences.packed(1.0)


def group(*rewards: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(reward=reward) for reward in rewards]


def test_advantages_are_distances_from_the_mean_in_deviations() -> None:
    # Mean 0.5; squares 0.09, 0.01, 0.01, 0.09, their mean 0.05; deviation 0.2236.
    expected = [-1.3416, -0.4472, 0.4472, 1.3416]
    assert advantages(group(0.2, 0.4, 0.6, 0.8)) == pytest.approx(expected, abs=1e-3)
    assert advantages([]) == []


@pytest.mark.parametrize(
    "rewards",
    [
        (0.1, 0.1, 0.1),  # whose mean is not 0.1
        (0.0, 1e-297),
        (1.0, 1.0 + 1e-12),
        (0.0, 1e308, 1e308),
        (0.5, math.nan),
        (0.5, math.inf),
        (0.3,),
    ],
)
def test_rewards_that_cannot_be_told_apart_teach_nothing(rewards: tuple[float, ...]) -> None:
    assert advantages(group(*rewards)) == [0.0] * len(rewards)
