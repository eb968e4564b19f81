"""Saving behind the training, on disks that take it and that do not; a stand-in for DeepSpeed's engine, one rank."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoint.manifest import Probe, checkpoint_directory, list_steps, read_manifest, verify_checkpoint
from launch.config import LocalError, TrainConfig, TrainingError
from launch.trainer.engine import Engine
from launch.trainer.host_copy import HostCopy
from launch.trainer.inputs import Inputs
from launch.trainer.ranks import RankEnvironment
from launch.trainer.state import Checkpoints
from pipeline.shards.format import TokenizerRecord

RANK_FILE = "zero_pp_rank_0_mp_rank_00_model_states.pt"
PROBE = Probe(token_ids=((1, 2),), mean_negative_log_likelihood=1.0)
READ = {"chain": 7168}


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def small_disk(mount_tmpfs: Callable[[str], Path]) -> Path:
    return mount_tmpfs("size=1m")


class Writer:
    """Stands for DeepSpeed's engine: hands a rank file of `tensor` to its checkpoint engine; writes a shared file."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.checkpoint_engine: Any = None

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> None:
        assert not save_latest
        target = Path(folder) / tag
        target.mkdir()
        (Path(folder) / "zero_to_fp32.py").touch()
        self.checkpoint_engine.save({"state": self.tensor}, str(target / RANK_FILE))


def engine(tensor: torch.Tensor | None = None, *, num_parameters: int = 1) -> Engine:
    writer = Writer(torch.zeros(10) if tensor is None else tensor)
    return Engine(writer, SimpleNamespace(), torch.device("cpu"), "cpu", num_parameters)  # type: ignore[arg-type]


@pytest.fixture
def checkpoints(train_config: Callable[..., TrainConfig], one_rank: None) -> Callable[..., Checkpoints]:
    inputs = Inputs({"chain": "sha256:1"}, TokenizerRecord(digest="sha256:2", vocab_size=256, eos_token_id=0), None)
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)

    def make(run_dir: Path, **changes: Any) -> Checkpoints:
        return Checkpoints(train_config(run_dir=run_dir, **changes), ranks, inputs, run_key="key", last_step=None)

    return make


def begin(checkpoints: Checkpoints, step: int, what: Engine | None = None) -> None:
    checkpoints.save(
        what or engine(), step=step, samples_consumed=99, validation_loss=1.5, probe=PROBE, tokens_by_source=READ
    )


def saved_tensor(folder: Path) -> torch.Tensor:
    tensor: torch.Tensor = torch.load(folder / "zero" / RANK_FILE, weights_only=True)["state"]
    return tensor


def test_save_is_complete_and_remembered(checkpoints: Callable[..., Checkpoints], tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "run")
    begin(saver, 7)
    saved = saver.finish()
    assert saved is not None
    assert (saved.step, saved.folder) == (7, checkpoint_directory(tmp_path / "run", 7))
    assert 0 < saved.stall_time_s <= saved.save_time_s
    assert verify_checkpoint(saved.folder) == []
    assert {Path(record.path).name for record in read_manifest(saved.folder).files} == {"zero_to_fp32.py", RANK_FILE}
    assert sorted(path.name for path in saved.folder.iterdir()) == ["manifest.json", "zero", "zero_to_fp32.py"]
    assert read_manifest(saved.folder).samples_consumed == 99
    assert read_manifest(saved.folder).tokens_by_source == READ
    assert saver.last_step == 7
    assert saver.finish() is None


def hold_writes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is made durable until the event is set."""
    gate, fsync = threading.Event(), os.fsync

    def wait_and_sync(descriptor: int) -> None:
        assert gate.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait_and_sync)
    return gate


def test_training_goes_on_while_the_state_of_before_is_written(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, saver, live = hold_writes(monkeypatch), checkpoints(tmp_path / "run"), torch.arange(1000.0)
    begin(saver, 7, engine(live))
    saver.before_update()
    live.fill_(-1)  # the optimizer's step
    assert saver.check() is None
    assert (list_steps(tmp_path / "run"), saver.last_step) == ([], None)
    gate.set()
    saved = saver.finish()
    assert saved is not None
    assert torch.equal(saved_tensor(saved.folder), torch.arange(1000.0))


def test_update_waits_for_the_copy(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, move = [], HostCopy.copy

    def copy_slowly(copy: HostCopy) -> None:
        time.sleep(0.2)
        order.append("copied")
        move(copy)

    monkeypatch.setattr(HostCopy, "copy", copy_slowly)
    saver = checkpoints(tmp_path / "run")
    begin(saver, 7)
    order.append("begun")
    saver.before_update()
    order.append("update")
    assert order == ["begun", "copied", "update"]
    saved = saver.finish()
    assert saved is not None
    assert saved.stall_time_s > 0.1, "the wait counts as standing still"


def test_muon_waits_at_once_since_its_momentum_changes_in_the_backward_pass(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    muon = {"name": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.02, "gradient_clipping": 0}
    gate, saver, live = hold_writes(monkeypatch), checkpoints(tmp_path / "run", optimizer=muon), torch.ones(1000)
    begin(saver, 7, engine(live))
    live.zero_()
    gate.set()
    saved = saver.finish()
    assert saved is not None
    assert torch.equal(saved_tensor(saved.folder), torch.ones(1000))


def test_copies_take_turns_in_the_same_memory(checkpoints: Callable[..., Checkpoints], tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "run")
    for step in (1, 2, 3):
        begin(saver, step, engine(torch.full((1000,), float(step))))
        saver.finish()
    assert saver._memory is not None
    assert saver._memory.size_bytes == 4000
    for step in (1, 2, 3):
        folder = checkpoint_directory(tmp_path / "run", step)
        assert torch.equal(saved_tensor(folder), torch.full((1000,), float(step)))


def test_blocking_save_takes_no_copy(checkpoints: Callable[..., Checkpoints], tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "run", checkpoint={"every_steps": 50, "asynchronous": False})
    begin(saver, 7)
    saved = saver.finish()
    assert saved is not None
    assert saver._memory is None
    assert verify_checkpoint(saved.folder) == []


def test_who_waits_for_a_save_is_told(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        gate.set()

    gate, saver = hold_writes(monkeypatch), checkpoints(tmp_path / "run")
    begin(saver, 7)
    assert saver.finish(say=say) is not None
    assert len(said) == 1
    assert "the checkpoint of step 7 is still being written, and the next save waits for it" in said[0]
    assert "raise checkpoint.every_steps" in said[0]


def test_host_without_memory_for_the_copy_is_told_the_way_out(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 43)  # 8 TiB of nothing, mapped as a tensor
    endless = torch.from_file(str(sparse), shared=True, size=1 << 43, dtype=torch.uint8)
    with pytest.raises(
        LocalError,
        match=r"rank 0 on \S+: the host has no memory for a copy .* at step 7: .*"
        r"set checkpoint.asynchronous=false, which needs none, and run again: it goes on from the beg",
    ):
        begin(checkpoints(tmp_path / "run"), 7, engine(endless))


def test_disk_too_small_is_found_before_writing(checkpoints: Callable[..., Checkpoints], small_disk: Path) -> None:
    # fp32 weight and two moments: 12 bytes a parameter
    with pytest.raises(TrainingError, match=r"bytes free, a checkpoint takes 1,200,000; free some.*from the beginning"):
        begin(checkpoints(small_disk), 7, engine(num_parameters=100_000))
    assert list_steps(small_disk) == []


def test_disk_that_fills_while_writing_loses_nothing(checkpoints: Callable[..., Checkpoints], small_disk: Path) -> None:
    saver = checkpoints(small_disk)
    begin(saver, 7)
    kept = saver.finish()
    assert kept is not None
    begin(saver, 8, engine(torch.zeros(2_000_000)))
    with pytest.raises(
        TrainingError,
        match=r"rank 0 on \S+: the checkpoint of step 8 could not be written: .*No space left.*"
        r"has space left and run again: it goes on from the checkpoint of step 7",
    ):
        saver.finish()
    assert list_steps(small_disk) == [7]
    assert verify_checkpoint(kept.folder) == []
    assert saver.finish() is None, "the failed save is over"


def test_rank_that_lost_its_peer_does_not_blame_the_disk(
    checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    def lose(*arguments: object, **options: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:9")

    widowed = engine()
    widowed.deepspeed.save_checkpoint = lose
    with pytest.raises(RuntimeError, match="closed by peer") as caught:
        begin(checkpoints(tmp_path / "run"), 7, widowed)
    assert not isinstance(caught.value, TrainingError)
