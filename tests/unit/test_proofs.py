"""The proof that a server answers as a version: its judgment by hand, and what is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from babylon_tasks.checkpoints.proof import read_proof
from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.records.proofs import PROOF, Proof, doubt, doubt_of_base

N = 100
BASE = tuple(-2.0 for _ in range(N))
# The step makes every other token likelier by 0.5 nats: its change has the length 0.5 * sqrt(50).
STEP = tuple(-1.5 if n % 2 else -2.0 for n in range(N))
PROOF_OF = Proof(tuple(range(N + 1)), STEP, BASE)


def moved(share: float, noise: float = 0.0) -> list[float]:
    """The base model, a share of the step's change, and noise of this deviation."""
    pairs = zip(BASE, STEP, strict=True)
    return [b + share * (s - b) + noise * (-1) ** (n // 2) for n, (b, s) in enumerate(pairs)]


def rounded(values: Sequence[float], noise: float) -> list[float]:
    """As a server in bfloat16 gives them: its base model's noise says how much it rounds."""
    return [v + noise * (-1) ** (n // 4) for n, v in enumerate(values)]


def test_a_server_that_answers_as_the_trainer_is_itself() -> None:
    assert doubt(PROOF_OF, STEP, BASE) is None
    assert doubt(PROOF_OF, rounded(STEP, 0.06), rounded(BASE, 0.06)) is None
    assert doubt(PROOF_OF, moved(1, noise=0.09), rounded(BASE, 0.06)) is None
    assert doubt(PROOF_OF, moved(0.6), BASE) is None  # bfloat16 took the rest


def test_the_base_model_under_the_name_of_a_version_is_found() -> None:
    assert "answers like the base model: 0%" in str(doubt(PROOF_OF, BASE, BASE))
    noisy = rounded(BASE, 0.06)
    assert "answers like the base model" in str(doubt(PROOF_OF, noisy, noisy))
    assert "answers like the base model" in str(doubt(PROOF_OF, moved(0, noise=0.09), noisy))
    assert "answers like the base model: 20%" in str(doubt(PROOF_OF, moved(0.2), BASE))


def test_another_version_is_found() -> None:
    assert "another version: 300%" in str(doubt(PROOF_OF, moved(3), BASE))
    assert "another version: -100%" in str(doubt(PROOF_OF, moved(-1), BASE))
    other = [-2.0 if n % 2 else -1.5 for n in range(N)]  # it moves the other tokens
    assert "another version: 0%" in str(doubt(PROOF_OF, other, BASE))


def test_another_base_model_is_found_whatever_the_step() -> None:
    other = [v - 0.5 for v in BASE]
    assert "differ by 0.5 nats a token" in str(doubt_of_base(PROOF_OF, other))
    assert "base model is another" in str(doubt(PROOF_OF, [v - 0.5 for v in STEP], other))
    assert doubt_of_base(PROOF_OF, [v - 0.1 for v in BASE]) is None


def test_a_step_that_rounding_hides_is_not_told_from_the_base_model() -> None:
    tiny = Proof(PROOF_OF.token_ids, tuple(v + 0.01 for v in BASE), BASE)
    noisy = rounded(BASE, 0.06)
    assert doubt(tiny, rounded(tiny.step, 0.06), noisy) is None
    assert doubt(tiny, noisy, noisy) is None
    assert "another version" in str(doubt(tiny, moved(2), noisy))
    # Where nothing is rounded, even such a step is told.
    assert "like the base model" in str(doubt(tiny, BASE, BASE))
    nothing = Proof(PROOF_OF.token_ids, BASE, BASE)  # a step that changed nothing
    assert doubt(nothing, BASE, BASE) is None


def test_many_tokens_tell_a_step_that_is_as_small_as_the_noise_of_one() -> None:
    """0.1 nats a token, 1.0 in all; the noise is 1.5 * 0.06, and that of the share 0.09 / 1.0."""
    small = Proof(PROOF_OF.token_ids, tuple(v + 0.1 for v in BASE), BASE)
    noisy = rounded(BASE, 0.06)
    assert doubt(small, rounded(small.step, 0.06), noisy) is None
    assert "answers like the base model" in str(doubt(small, noisy, noisy))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_proves_nothing(bad: float) -> None:
    assert "finite" in str(doubt(PROOF_OF, [bad, *STEP[1:]], BASE))
    assert "finite" in str(doubt(PROOF_OF, STEP, [bad, *BASE[1:]]))
    assert "finite" in str(doubt(PROOF_OF, STEP[1:], BASE))


@pytest.mark.parametrize(
    "values", [((1,), (), ()), ((1, 2), (-1.0,), ()), ((1, 2), (1.0,), (-1.0,))]
)
def test_a_damaged_proof_is_not_read(values: tuple[object, ...], tmp_path: Path) -> None:
    text = msgspec.json.encode(dict(zip(("token_ids", "step", "base"), values, strict=True)))
    (tmp_path / PROOF).write_bytes(text)
    with pytest.raises(CheckpointUnreadable, match=PROOF):
        read_proof(tmp_path)


def test_a_checkpoint_of_an_older_release_has_no_proof(tmp_path: Path) -> None:
    assert read_proof(tmp_path) is None


@pytest.mark.filterwarnings("ignore:cov")  # ART's: of log-probabilities that are not recorded
class TestTheTrainers:
    """With a tiny model."""

    torch = pytest.importorskip("torch")

    @pytest.fixture(scope="class")
    def base_model(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        from tests.unit.tiny import make_tiny_model

        return make_tiny_model(tmp_path_factory.mktemp("tiny"))

    def test_the_proof_is_what_transformers_computes(self, base_model: str, tmp_path: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from tests.unit.tiny import make_request, two_sided
        from workers.trainer.torch.trainer import TorchTrainer

        request = make_request(tmp_path, base_model, two_sided())
        TorchTrainer("cpu-0").step(request, lambda progress: None)
        proof = read_proof(Path(request.output_dir))
        assert proof is not None
        network = AutoModelForCausalLM.from_pretrained(base_model)
        assert self._values(network, proof) == pytest.approx(proof.base, abs=1e-4)
        adapted = PeftModel.from_pretrained(network, request.output_dir)
        assert self._values(adapted, proof) == pytest.approx(proof.step, abs=1e-4)
        assert max(abs(s - b) for s, b in zip(proof.step, proof.base, strict=True)) > 0.01
        assert doubt(proof, self._values(adapted, proof), proof.base) is None

    def test_it_moves_no_number_of_training(
        self, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tests.unit.tiny import make_request, two_sided
        from workers.trainer.torch import checkpoint
        from workers.trainer.torch.trainer import TorchTrainer

        def two_steps(folder: Path) -> list[object]:
            trainer, parent, found = TorchTrainer("cpu-0"), None, []
            for name in ("a", "b"):
                request = make_request(folder, base_model, two_sided(), parent, name)
                result = trainer.step(request, lambda progress: None)
                parent = request.output_dir
                weights = Path(parent, "adapter_model.safetensors").read_bytes()
                saved = self.torch.load(Path(parent, "optimizer.pt"), weights_only=True)
                found.append((result.loss, weights, saved["rng"].tolist()))
            return found

        with_proof = two_steps(tmp_path / "with")
        monkeypatch.setattr(checkpoint, "write_proof", lambda model, folder: None)
        assert two_steps(tmp_path / "without") == with_proof

    def _values(self, network: object, proof: Proof) -> list[float]:
        tokens = self.torch.tensor([proof.token_ids])
        with self.torch.no_grad():
            logits = network(input_ids=tokens).logits[0, :-1].float()  # type: ignore[operator]
        values = logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1)
        return [float(value) for value in values]
