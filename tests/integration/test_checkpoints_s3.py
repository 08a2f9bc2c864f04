"""Checkpoints in a bucket, over the real S3 protocol: moto's server on loopback, not AWS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointUnreadable, LeaseLost, UserError
from babylon_tasks.work.context import Context
from tests.chaos.proxy import Proxy
from tests.checkpoints import make_version
from tests.rows import add_window, commit_steps, hours_ago, query, states
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.serve.vllm.names import open_adapter

try:
    import s3fs
    from moto.server import ThreadedMotoServer
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("no S3 server: install babylon-tasks[dev]", allow_module_level=True)

BUCKET = "weights"
NONCE = "7f6e"
WEIGHTS = os.urandom(9 << 20)  # more than a part of an upload


@dataclass(frozen=True, slots=True)
class Bucket:
    """The server's bucket, seen past the code under test."""

    store: str
    endpoint: str
    client: s3fs.S3FileSystem

    def keys(self) -> list[str]:
        """Names of all objects."""
        return sorted(self.client.find(BUCKET))


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    """A server and a client of our own to look into it."""
    # The tests of a module may run in two parts, each with a server: a client keeps its address.
    s3fs.S3FileSystem.clear_instance_cache()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = s3fs.S3FileSystem(
        key="x", secret="x", endpoint_url=f"http://{host}:{port}", use_listings_cache=False
    )
    yield Bucket(f"s3://{BUCKET}/prod", f"http://{host}:{port}", client)
    server.stop()


@pytest.fixture
def bucket(server: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """An empty bucket, and the environment a deployment has: nothing of it is in our settings."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    nothing = str(tmp_path / "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", nothing)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", nothing)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    on_machine(monkeypatch, tmp_path / "machine-0")
    server.client.mkdir(BUCKET)
    yield server
    monkeypatch.undo()
    server.client.rm(BUCKET, recursive=True)


@pytest.fixture
def new_process() -> Iterator[None]:
    """Forget clients: s3fs keeps them, and looks into the environment only for a new one."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def on_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on temporary files, so what was fetched, are in this machine's own folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_another_machine_opens_what_one_has_saved(
    bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    url = checkpoint_files.folder_of(bucket.store, "babylon-agent", 3, 17)
    beats: list[None] = []
    checkpoint_files.save(source, url, NONCE, lambda: beats.append(None))
    assert len(beats) >= 3  # one a part: a slow bucket must not cost the lease
    opened = subprocess.run(
        [sys.executable, "-c", "import sys; from babylon_tasks.checkpoints import files; "
         "print(files.open_local(sys.argv[1]))", url],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    folder = Path(opened.stdout.strip())
    assert folder.is_relative_to(tmp_path)
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "adapter_config.json").read_text() == "{}"


def test_what_was_fetched_is_not_fetched_again(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    folder = checkpoint_files.open_local(url)
    bucket.client.rm(f"{url}/adapter_model.safetensors")
    assert checkpoint_files.open_local(url) == folder
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS[:100])
    with pytest.raises(CheckpointUnreadable):
        checkpoint_files.open_local(url)


def test_two_threads_that_open_it_at_once_get_what_was_saved(
    bucket: Bucket, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins to write while the first has half of it, and the first ends before it."""
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    first_has_ended, read = threading.Event(), s3fs.core.S3File.read

    def slow_to_begin(file: Any, length: int = -1) -> bytes:
        if threading.current_thread().name == "second":
            first_has_ended.wait(5)
        content: bytes = read(file, length)
        return content

    monkeypatch.setattr(s3fs.core.S3File, "read", slow_to_begin)
    opened: list[bytes] = []

    def open_second() -> None:
        folder = checkpoint_files.open_local(url)
        opened.append((folder / "adapter_model.safetensors").read_bytes())

    second = threading.Thread(target=open_second, name="second")

    def on_chunk() -> None:
        if second.ident is None:
            second.start()
            second.join(0.5)

    folder = checkpoint_files.open_local(url, on_chunk)
    opened.append((folder / "adapter_model.safetensors").read_bytes())
    first_has_ended.set()
    second.join()
    assert opened == [WEIGHTS, WEIGHTS]


@pytest.mark.parametrize("at", ["in a file", "before it is renamed"])
def test_a_fetch_that_is_killed_leaves_nothing_that_is_opened(
    bucket: Bucket, source: Path, tmp_path: Path, at: str
) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    kill = "lambda *_: os.kill(os.getpid(), 9)"
    harm = {"in a file": "", "before it is renamed": f"pathlib.Path.rename = {kill}; "}[at]
    beat = kill if at == "in a file" else "lambda: None"
    machine = tmp_path / "machine-0"
    killed = subprocess.run(
        [sys.executable, "-c", "import os, pathlib, sys; "
         f"from babylon_tasks.checkpoints import files; {harm}"
         f"files.open_local(sys.argv[1], {beat})", url],
        env={**os.environ, "TMPDIR": str(machine)}, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -9
    assert len(list(machine.glob("*/fetching/*/copy/adapter_*"))) >= 1
    folder = checkpoint_files.open_local(url)
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert list(machine.glob("*/fetching/*/*")) == []


def test_another_content_of_the_same_size_is_refused(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    bucket.client.pipe_file(f"{url}/adapter_model.safetensors", WEIGHTS[::-1])
    with pytest.raises(CheckpointUnreadable, match=r"adapter_model\.safetensors is not what was"):
        checkpoint_files.open_local(url)


def test_a_copy_of_release_0_1_0_is_not_trusted(bucket: Bucket, source: Path) -> None:
    """Two of its threads may have written it at once: the right size, another content."""
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    folder = checkpoint_files.open_local(url)
    (folder / "manifest.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(bytes(len(WEIGHTS)))
    assert checkpoint_files.open_local(url) == folder
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_manifest_without_checksums_is_read_and_one_with_them_by_release_0_1_0(
    bucket: Bucket, source: Path
) -> None:
    class OldManifest(msgspec.Struct):
        files: dict[str, int]

    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    manifest = bucket.client.cat_file(f"{url}/manifest.json")
    sizes = {"adapter_config.json": 2, "adapter_model.safetensors": len(WEIGHTS)}
    assert msgspec.json.decode(manifest, type=OldManifest).files == sizes
    old = msgspec.json.encode(OldManifest(sizes))
    bucket.client.pipe_file(f"{url}/manifest.json", old)
    folder = checkpoint_files.open_local(url)
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_no_manifest_is_unreadable(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    bucket.client.rm(f"{url}/manifest.json")
    with pytest.raises(CheckpointUnreadable, match=r"manifest\.json"):
        checkpoint_files.open_local(url)


def test_a_file_cut_short_is_unreadable(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    bucket.client.pipe_file(f"{url}/adapter_model.safetensors", WEIGHTS[:-1])
    with pytest.raises(CheckpointUnreadable, match=r"adapter_model\.safetensors was cut short"):
        checkpoint_files.open_local(url)


def test_a_folder_is_never_written_twice(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    (source / "adapter_config.json").write_text("others")
    with pytest.raises(UserError, match="exists"):
        checkpoint_files.save(source, url, NONCE)
    assert bucket.client.cat_file(f"{url}/adapter_config.json") == b"{}"


def test_removing_removes_all_of_it_and_nothing_else(bucket: Bucket, source: Path) -> None:
    kept, gone = (checkpoint_files.folder_of(bucket.store, "m", step, 1) for step in (1, 11))
    for url in (kept, gone):
        checkpoint_files.save(source, url, NONCE)
    before = bucket.keys()
    checkpoint_files.remove(gone)
    checkpoint_files.remove(gone)
    assert bucket.keys() == [key for key in before if "/11-1/" not in key]
    assert len(bucket.keys()) == len(before) / 2
    assert checkpoint_files.open_local(kept).is_dir()


def test_a_copy_that_loses_its_lease_leaves_nothing(bucket: Bucket, source: Path) -> None:
    def lost() -> None:
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        checkpoint_files.save(
            source, checkpoint_files.folder_of(bucket.store, "m", 1, 1), NONCE, lost
        )
    assert bucket.keys() == []


def test_only_the_own_unfinished_folder_is_removed(bucket: Bucket, source: Path) -> None:
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    checkpoint_files.save(source, url, "theirs")
    before = bucket.keys()
    assert checkpoint_files.remove_unfinished(url, "ours")
    assert bucket.keys() == before
    assert checkpoint_files.remove_unfinished(url, "theirs")
    assert bucket.keys() == []
    assert checkpoint_files.remove_unfinished(url, "theirs")


def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")


def wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)


def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("fault", [no_server, no_url, wrong_key, no_key])
def test_a_bucket_that_cannot_be_read_is_said_in_one_line_within_seconds(
    bucket: Bucket, new_process: None, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    fault(monkeypatch)
    started = time.monotonic()
    with pytest.raises(CheckpointUnreadable, match="AWS_ENDPOINT_URL") as caught:
        checkpoint_files.open_local(checkpoint_files.folder_of(bucket.store, "m", 1, 1))
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("fault", [no_url, wrong_key, no_key])
def test_a_bucket_that_cannot_be_written_is_said_in_one_line(
    bucket: Bucket, new_process: None, monkeypatch: pytest.MonkeyPatch, source: Path, fault: Fault
) -> None:
    fault(monkeypatch)
    url = checkpoint_files.folder_of(bucket.store, "m", 1, 1)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL") as caught:
        checkpoint_files.save(source, url, NONCE)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    checkpoint_files.remove(url)  # is called on the way out of another error, so it raises none


def test_a_missing_bucket_is_said_and_not_made(bucket: Bucket, source: Path) -> None:
    with pytest.raises(UserError, match="bucket does not exist"):
        checkpoint_files.save(source, "s3://wieghts/prod/m/1-1", NONCE)
    assert not bucket.client.exists("wieghts")


def test_the_missing_extra_is_named(
    bucket: Bucket, new_process: None, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"babylon-tasks\[s3\]"):
        checkpoint_files.save(source, f"{bucket.store}/m/1-1", NONCE)


@pytest.fixture
def make_trainer() -> Iterator[Callable[[str], TrainerProcess]]:
    made: list[TrainerProcess] = []

    def make(slot: str) -> TrainerProcess:
        made.append(TrainerProcess(TrainerOptions("noop", None, slot, 1.0, 30.0, 60.0)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_two_machines_train_one_model(
    bucket: Bucket,
    make_context: Callable[..., Context],
    make_trainer: Callable[[str], TrainerProcess],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for number, hours in enumerate((3, 2), start=1):
        on_machine(monkeypatch, tmp_path / f"machine-{number}")
        context = make_context(checkpoint_store=bucket.store)
        add_window(context, hours_ago(hours))
        pipeline.produce(context)
        pipeline.score(context)
        pipeline.train(context, make_trainer(f"cpu-{number}"))
    assert states(context) == dict.fromkeys((hours_ago(3), hours_ago(2)), "trained")
    first, second = query(context, "SELECT step, token, checkpoint FROM rl.steps ORDER BY step")
    for row in (first, second):
        assert row["checkpoint"] == f"{bucket.store}/babylon-agent/{row['step']}-{row['token']}"
    key = first["checkpoint"].removeprefix("s3://")
    (fetched,) = tmp_path.glob("*/babylon-tasks-*/checkpoints/s3/*/*/*/*")
    assert fetched.is_relative_to(tmp_path / "machine-2")
    assert str(fetched).endswith(key)
    assert checkpoint_files.open_local(second["checkpoint"]).is_dir()


def test_old_steps_go_from_the_bucket(
    bucket: Bucket,
    make_context: Callable[..., Context],
    make_trainer: Callable[[str], TrainerProcess],
) -> None:
    context = make_context(checkpoint_store=bucket.store, keep_checkpoints=1)
    commit_steps(context, make_trainer("cpu-0"), 4)
    kept = query(context, "SELECT checkpoint FROM rl.steps WHERE removed_at IS NULL ORDER BY step")
    assert {f"s3://{key.rpartition('/')[0]}" for key in bucket.client.find(BUCKET)} == {
        row["checkpoint"] for row in kept
    }
    assert [checkpoint_files.open_local(row["checkpoint"]).is_dir() for row in kept] == [True] * 3


def test_an_adapter_is_exported_from_the_bucket(
    bucket: Bucket, make_context: Callable[..., Context], source: Path, tmp_path: Path
) -> None:
    context = make_context(checkpoint_store=bucket.store)
    url = checkpoint_files.folder_of(bucket.store, "babylon-agent", 1, 1)
    checkpoint_files.save(source, url, NONCE)
    query(context, "INSERT INTO rl.heads VALUES ('babylon-agent', 1, 1, 'none') RETURNING 1")
    query(
        context,
        "INSERT INTO rl.steps (model_name, step, token, trainer, window_ids, trajectories,"
        " trainable_tokens, checkpoint, version, started_at) VALUES"
        " ('babylon-agent', 1, 1, 'torch', '{}', 3, 9, %s, 'v1.0.0', now()) RETURNING 1",
        url,
    )

    def export(target: Path) -> subprocess.CompletedProcess[str]:
        babylon = str(Path(sys.executable).with_name("babylon"))
        return subprocess.run(
            [babylon, "models", "export", "v1.0.0", str(target)],
            env={**os.environ, "DATABASE_URL": context.settings.postgres(),
                 "TMPDIR": str(tmp_path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = export(tmp_path / "adapter")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == WEIGHTS
    bucket.client.rm(f"{url}/manifest.json")
    done = export(tmp_path / "again")
    assert done.returncode == 2
    assert done.stderr.startswith(f"cannot read the checkpoint {url} from this machine")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*again*"))


def test_a_bucket_that_is_away_leaves_the_window_to_others(
    bucket: Bucket,
    new_process: None,
    make_context: Callable[..., Context],
    make_trainer: Callable[[str], TrainerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context(checkpoint_store=bucket.store)
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    pipeline.score(context)
    no_server(monkeypatch)
    with pytest.raises(UserError, match="cannot write the checkpoint s3://"):
        pipeline.train(context, make_trainer("cpu-0"))
    assert states(context) == {hours_ago(2): "scored"}


@pytest.mark.parametrize("begins", ["before it saves", "while it saves"])
def test_a_bucket_that_is_away_as_a_step_ends_costs_no_step(
    bucket: Bucket,
    new_process: None,
    make_context: Callable[..., Context],
    make_trainer: Callable[[str], TrainerProcess],
    monkeypatch: pytest.MonkeyPatch,
    begins: str,
) -> None:
    """The gradient may have taken hours; the next step would find the store well again."""
    port = int(bucket.endpoint.rpartition(":")[2])
    with closing(Proxy("127.0.0.1", port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        context = make_context(checkpoint_store=bucket.store, max_attempts=1)
        add_window(context, hours_ago(2))
        pipeline.produce(context)
        pipeline.score(context)
        name = {"before it saves": "save", "while it saves": "_copy"}[begins]
        real, once = getattr(checkpoint_files, name), iter([True])

        def away(*arguments: Any) -> Any:
            if next(once, False):
                proxy.drop()
                threading.Timer(1.5, proxy.restore).start()
            return real(*arguments)

        monkeypatch.setattr(checkpoint_files, name, away)
        report = pipeline.train(context, make_trainer("cpu-0"))
        assert report
        assert checkpoint_files.open_local(report.checkpoint).is_dir()
    assert states(context) == {hours_ago(2): "trained"}
    (attempt,) = query(context, "SELECT outcome FROM rl.attempts WHERE stage = 'train'")
    assert attempt["outcome"] == "done"


def test_a_copy_that_is_loaded_stays(bucket: Bucket) -> None:
    """VLLM reads it again when it likes. Two endpoints of this machine have five adapters each."""
    loaded = [open_adapter(make_version(bucket.store, step)) for step in range(1, 11)]
    endpoints = loaded[:5], loaded[5:]
    for step in range(11, 14):
        for endpoint in endpoints:
            assert all(adapter.keep() for adapter in endpoint)
        last = open_adapter(make_version(bucket.store, step))
    assert all(adapter.keep() for adapter in (*loaded, last))


def test_of_the_copies_that_nobody_uses_the_newest_stay(bucket: Bucket) -> None:
    versions = [make_version(bucket.store, step) for step in range(1, 10)]
    adapters = [open_adapter(version) for version in versions[:8]]
    for age, adapter in enumerate(reversed(adapters), start=1):
        os.utime(adapter.folder, (0, time.time() - 3600 * age))
    opened_again, loaded = adapters[0], adapters[1]
    assert open_adapter(versions[0]) == opened_again  # as a trainer does, which touches nothing
    assert loaded.keep()
    open_adapter(versions[8])
    assert [each.folder.is_dir() for each in adapters] == [True, True, *[False] * 5, True]
    assert len(list(loaded.folder.parent.iterdir())) == 4
    assert open_adapter(versions[5]).name == adapters[5].name  # fetched again
