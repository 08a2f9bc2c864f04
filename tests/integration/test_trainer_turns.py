"""One trainer process for many lineages: what they share, and that nothing else passes over."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch

from babylon_tasks.errors import CheckpointUnreadable, Retryable, TrainerDied, UserError
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import EvaluateRequest, GenerateRequest, Likelihood
from tests.hub_server import HubServer
from tests.unit.tiny import make_request, make_tiny_model, two_sided
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.trainer.torch.trainer import TorchTrainer

pytestmark = pytest.mark.slow

Start = Callable[..., TrainerProcess]

FILES = ("adapter_model.safetensors", "optimizer.pt", "adapter_config.json")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    started: list[TrainerProcess] = []

    def start_one(kind: str = "torch", **limits: float) -> TrainerProcess:
        limits = {"heartbeat_seconds": 0.2, "stall_seconds": 100, "idle_seconds": 60, **limits}
        started.append(TrainerProcess(TrainerOptions(kind, None, "cpu-0", **limits)))
        return started[-1]

    yield start_one
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def ignore(progress: Progress | None) -> None:
    pass


def lineage_step(
    folder: Path, base_model: str, lineage: str, number: int, parent: str | None
) -> StepRequest:
    """The step that a lineage takes after this parent; lineages differ in all that they may."""
    rank, alpha = {"one": (8, 16), "two": (16, 32), "three": (8, 32)}[lineage]
    request = make_request(
        folder,
        base_model,
        two_sided(2 if lineage == "one" else 1),
        parent,
        f"{lineage}-{number}",
        seed=number,
        lora_rank=rank,
        lora_alpha=alpha,
        kl_penalty=0.0 if lineage == "two" else 0.1,
    )
    return msgspec.structs.replace(request, model_name=lineage)


def evaluation_of(step: StepRequest, checkpoint: str | None) -> EvaluateRequest:
    return EvaluateRequest(
        model_name=step.model_name,
        base_model=step.base_model,
        checkpoint=checkpoint,
        samples_path=step.samples_path,
        max_sequence_tokens=1024,
        micro_batch_tokens=200,
    )


def generation_of(step: StepRequest, checkpoint: str | None) -> GenerateRequest:
    return GenerateRequest(
        model_name=step.model_name,
        base_model=step.base_model,
        checkpoint=checkpoint,
        prompts=[[{"role": "user", "content": "YES or NO?"}]],
        max_tokens=8,
        temperature=1.0,
        seed=3,
        n=2,
    )


def files(folder: str) -> list[bytes]:
    return [(Path(folder) / name).read_bytes() for name in FILES]


@pytest.mark.slow
def test_lineages_in_turn_get_the_bytes_that_each_gets_alone(
    start: Start, base_model: str, tmp_path: Path
) -> None:
    """Two lineages of other ranks and alphas; between their steps both are evaluated and heard."""
    together, heads = start(), dict.fromkeys(["one", "two"])
    loads: list[str] = []

    def on_beat(progress: Progress | None) -> None:
        if progress is not None:
            loads.append(progress.phase)

    for number in range(2):
        for lineage, parent in list(heads.items()):
            step = lineage_step(tmp_path / "together", base_model, lineage, number, parent)
            together.step(step, on_beat)
            heads[lineage] = step.output_dir
            for checkpoint in (None, step.output_dir, heads["one"]):
                together.evaluate(evaluation_of(step, checkpoint), on_beat)
                together.generate(generation_of(step, checkpoint), on_beat)
        pid = together.pid
    assert together.pid == pid
    assert {"load", "tokenize", "train", "save", "evaluate", "generate"} == set(loads)
    for lineage in heads:
        alone, parent = start(), None
        for number in range(2):
            step = lineage_step(tmp_path / "alone", base_model, lineage, number, parent)
            alone.step(step, ignore)
            parent = step.output_dir
        alone.close()
        assert parent is not None
        assert files(parent) == files(str(heads[lineage]))


def tensor_bytes() -> int:
    return sum(
        one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if issubclass(type(one), torch.Tensor)
    )


def test_sixteen_turns_take_no_more_memory_than_four(base_model: str, tmp_path: Path) -> None:
    """Without Python's own collections: they come when they come, and a GPU may be full before.

    As in a trainer process, what was imported is not looked at for garbage.
    """
    trainer, heads = TorchTrainer("cpu-0"), dict.fromkeys(["one", "two", "three"])
    held = []
    gc.disable()
    gc.freeze()
    try:
        for turn in range(16):
            lineage = list(heads)[turn % 3]
            step = lineage_step(tmp_path, base_model, lineage, turn, heads[lineage])
            trainer.step(step, ignore)
            heads[lineage] = step.output_dir
            trainer.evaluate(evaluation_of(step, step.output_dir), ignore)
            held.append(tensor_bytes())
    finally:
        gc.unfreeze()
        gc.enable()
    assert trainer._model is not None
    assert max(held[4:]) == max(held[1:4])


def test_the_old_base_model_is_gone_before_the_next_is_loaded(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once would not fit a GPU."""
    other = make_tiny_model(tmp_path / "other", seed=1)
    trainer = TorchTrainer("cpu-0")
    trainer.step(make_request(tmp_path, base_model, two_sided(1), name="a"), ignore)
    assert trainer._model is not None
    weights = [weakref.ref(weight) for weight in trainer._model.network.parameters()]
    alive: list[int] = []
    load = "workers.trainer.torch.language_model.load_base"
    from workers.trainer.torch.base_model import load_base

    def counted(*arguments: Any) -> Any:
        alive.append(sum(weight() is not None for weight in weights))
        return load_base(*arguments)

    monkeypatch.setattr(load, counted)
    gc.disable()
    try:
        trainer.step(make_request(tmp_path, other, two_sided(1), name="b"), ignore)
    finally:
        gc.enable()
    assert len(weights) > 50
    assert alive == [0]


def test_a_change_of_turns_loads_no_base_model(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TorchTrainer("cpu-0")
    heads: dict[str, str | None] = dict.fromkeys(["one", "two"])
    for turn in range(4):
        lineage = list(heads)[turn % 2]
        step = lineage_step(tmp_path, base_model, lineage, turn, heads[lineage])
        trainer.step(step, ignore)
        heads[lineage] = step.output_dir
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
        trainer.evaluate(evaluation_of(step, None), ignore)


# --- the base model's revision ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    hub = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


def step_on(
    trainer: TrainerProcess, folder: Path, base_model: str, revision: str | None = None
) -> StepResult:
    request = make_request(folder, base_model, two_sided(1))
    return trainer.step(msgspec.structs.replace(request, base_revision=revision), ignore)


@pytest.mark.slow
@pytest.mark.parametrize("folder_first", [True, False])
def test_a_folder_and_a_hub_id_take_turns_in_one_process(
    start: Start, hub: HubServer, tmp_path: Path, folder_first: bool
) -> None:
    folder = make_tiny_model(tmp_path / "folder", seed=1)
    commit = hub.push("org/tiny", Path(make_tiny_model(tmp_path / "pushed", seed=2)))
    trainer, pids = start(), set()
    order = [folder, "org/tiny"] if folder_first else ["org/tiny", folder]
    losses = []
    for base_model in [*order, *order]:
        before = len(hub.requests)
        result = step_on(trainer, tmp_path, base_model)
        assert result.base_revision is not None
        if base_model == folder:
            assert result.base_revision.startswith("files:")
            assert len(hub.requests) == before
        else:
            assert result.base_revision == commit
        losses.append(result.loss)
        pids.add(trainer.pid)
    assert len(pids) == 1
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_a_pinned_commit_is_loaded_whatever_the_branch_has_become(
    start: Start, hub: HubServer, tmp_path: Path
) -> None:
    old = hub.push("org/tiny", Path(make_tiny_model(tmp_path / "old", seed=1)))
    trainer = start()
    first = step_on(trainer, tmp_path, "org/tiny")
    new = hub.push("org/tiny", Path(make_tiny_model(tmp_path / "new", seed=2)))
    # Who does not care takes what is in memory.
    assert step_on(trainer, tmp_path, "org/tiny").base_revision == first.base_revision == old
    moved = step_on(trainer, tmp_path, "org/tiny", new)
    assert (moved.base_revision, moved.loss == first.loss) == (new, False)
    before = len(hub.requests)
    again = step_on(trainer, tmp_path, "org/tiny", old)
    assert (again.base_revision, again.loss) == (old, first.loss)
    assert not [path for path in hub.requests[before:] if "/resolve/main/" in path]
    with pytest.raises(UserError, match=rf"org/tiny is revision {new}, but .* pinned to main: "):
        step_on(trainer, tmp_path, "org/tiny", "main")
    with pytest.raises(UserError, match=r"cannot be loaded \(f{40} is not a valid git"):
        step_on(trainer, tmp_path, "org/tiny", "f" * 40)
    before = len(hub.requests)
    assert step_on(trainer, tmp_path, "org/tiny", old).loss == first.loss
    assert len(hub.requests) == before  # it has stayed in memory


def test_a_folder_that_is_another_model_now_is_refused(base_model: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=1)
    trainer = TorchTrainer("cpu-0")
    request = make_request(tmp_path, folder, two_sided(1))
    pinned = trainer.step(request, ignore).base_revision
    make_tiny_model(tmp_path / "model", seed=2)  # while it is in memory, nobody looks
    request = msgspec.structs.replace(request, base_revision=pinned)
    assert trainer.step(request, ignore).base_revision == pinned
    trainer.step(make_request(tmp_path, base_model, two_sided(1)), ignore)
    kept = trainer._model
    asked = [
        (trainer.step, request),
        (trainer.evaluate, evaluation_of(request, None)),
        (trainer.generate, generation_of(request, None)),
    ]
    for ask, one in asked:
        one = msgspec.structs.replace(one, base_revision=pinned)
        with pytest.raises(UserError, match=rf"is revision files:\w+, but .* pinned to {pinned}: "):
            ask(one, ignore)
        unpinned = msgspec.structs.replace(one, base_revision=None)
        assert trainer._model is kept  # the others' model did not go for it
    assert ask(unpinned, ignore).base_revision not in (None, pinned)
    with pytest.raises(UserError, match=f"is revision files:.* pinned to {'f' * 40}: "):
        trainer.step(msgspec.structs.replace(request, base_revision="f" * 40), ignore)


def test_a_step_names_its_packages(base_model: str, tmp_path: Path) -> None:
    result = TorchTrainer("cpu-0").step(make_request(tmp_path, base_model, two_sided(1)), ignore)
    assert set(result.packages) == {
        "babylon-tasks", "openpipe-art", "torch", "transformers", "peft"
    }  # fmt: skip
    assert result.packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


# --- the other trainers, and faults ---


def test_noop_answers_trivially(start: Start, tmp_path: Path) -> None:
    trainer, step = start("noop"), make_request(tmp_path, "none", two_sided(1))
    trainer.step(step, ignore)
    beats: list[Progress | None] = []
    evaluated = trainer.evaluate(evaluation_of(step, step.output_dir), beats.append)
    assert evaluated.trajectories == [Likelihood(f"w0-{n}", 0, 0.0) for n in range(4)]
    assert (evaluated.calls, evaluated.device) == (8, "none")
    generated = trainer.generate(generation_of(step, None), beats.append)
    assert [[one.text for one in answers] for answers in generated.generations] == [["", ""]]
    assert beats == [Progress("evaluate", share=0.0), Progress("generate", share=0.0)]
    with pytest.raises(CheckpointUnreadable, match="no such folder"):
        trainer.evaluate(evaluation_of(step, "/nowhere"), ignore)
    pid = trainer.pid
    trainer.step(step, ignore)
    assert trainer.pid == pid


def test_serverless_refuses_in_a_line(start: Start, tmp_path: Path) -> None:
    trainer, step = start("serverless"), make_request(tmp_path, "none", two_sided(1))
    with pytest.raises(UserError, match=r"^W&B has the weights of tiny, .*TRAINER=torch$"):
        trainer.evaluate(evaluation_of(step, None), ignore)
    with pytest.raises(UserError, match=r"^W&B's address is not known"):
        trainer.generate(generation_of(step, None), ignore)


def noop_that_evaluates(trainer: TrainerProcess, by: str) -> None:
    """Make the noop trainer evaluate by this expression."""
    program = "import time, workers.trainer.noop as noop\n"
    program += f"noop.NoopTrainer.evaluate = lambda self, request, tell: {by}\n"
    program += "from workers.trainer.__main__ import main; main()"
    trainer._command[1:4] = ["-c", program]


def test_a_trainer_that_answers_something_else_is_ended(start: Start, tmp_path: Path) -> None:
    trainer, step = start("noop"), make_request(tmp_path, "none", two_sided(1))
    noop_that_evaluates(trainer, "noop.GenerateResult([], 0, 0, 'none', 0.0)")
    trainer.step(step, ignore)
    with pytest.raises(TrainerDied, match="the trainer answered with a GenerateResult"):
        trainer.evaluate(evaluation_of(step, None), ignore)
    assert trainer.pid is None
    assert trainer.step(step, ignore).sequences == 8


@pytest.mark.parametrize(
    ("fault", "error", "warm"),
    [
        ("1 / 0", Retryable, False),
        ("(_ for _ in ()).throw(noop.CheckpointUnreadable('do this'))", CheckpointUnreadable, True),
    ],
)
def test_an_evaluation_fails_as_a_step_does(
    start: Start, tmp_path: Path, fault: str, error: type[Exception], warm: bool
) -> None:
    trainer, step = start("noop"), make_request(tmp_path, "none", two_sided(1))
    noop_that_evaluates(trainer, fault)
    with pytest.raises(error, match=r"^do this$|^the trainer failed: ZeroDivisionError: "):
        trainer.evaluate(evaluation_of(step, None), ignore)
    assert (trainer.pid is not None) == warm
    assert trainer.step(step, ignore).sequences == 8


def test_an_evaluation_that_says_nothing_is_ended(start: Start, tmp_path: Path) -> None:
    """It has the same life signs as a step: silence is told as None, and a stall kills."""
    trainer = start("noop", heartbeat_seconds=0.05, stall_seconds=1.0)
    noop_that_evaluates(trainer, "time.sleep(60)")
    step = make_request(tmp_path, "none", two_sided(1))
    beats: list[Progress | None] = []
    with pytest.raises(TrainerDied, match="no sign of life for 1 s"):
        trainer.evaluate(evaluation_of(step, None), beats.append)
    assert beats.count(None) >= 5
    assert trainer.pid is None
