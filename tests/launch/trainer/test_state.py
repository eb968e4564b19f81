"""Saving on a disk that does not take it: a real small disk, a stand-in for DeepSpeed's writer, one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoint.manifest import Probe, checkpoint_directory, list_steps, read_manifest, verify_checkpoint
from launch.config import LocalError, TrainConfig, TrainingError
from launch.trainer.engine import Engine
from launch.trainer.inputs import Inputs
from launch.trainer.ranks import RankEnvironment
from launch.trainer.state import Checkpoints, _own_files
from pipeline.shards.format import TokenizerRecord

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
    """Stands for DeepSpeed's engine: writes `size_bytes` as a rank file, with torch, and a shared file."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> None:
        assert not save_latest
        target = Path(folder) / tag
        target.mkdir()
        (Path(folder) / "zero_to_fp32.py").touch()
        tensor = torch.zeros(self.size_bytes, dtype=torch.uint8)
        torch.save(tensor, target / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def engine(*, size_bytes: int, num_parameters: int = 1) -> Engine:
    device = torch.device("cpu")
    return Engine(Writer(size_bytes), SimpleNamespace(), device, "cpu", num_parameters)  # type: ignore[arg-type]


@pytest.fixture
def checkpoints(train_config: Callable[..., TrainConfig], one_rank: None) -> Callable[[Path], Checkpoints]:
    inputs = Inputs({"chain": "sha256:1"}, TokenizerRecord(digest="sha256:2", vocab_size=256, eos_token_id=0), None)
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    return lambda run_dir: Checkpoints(train_config(run_dir=run_dir), ranks, inputs, run_key="key", last_step=None)


def save(checkpoints: Checkpoints, step: int, **what: Any) -> Path:
    return checkpoints.save(
        engine(**what), step=step, samples_consumed=99, validation_loss=1.5, probe=PROBE, tokens_by_source=READ
    )


def test_save_is_complete_and_remembered(checkpoints: Callable[[Path], Checkpoints], tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "run")
    folder = save(saver, 7, size_bytes=10)
    assert folder == checkpoint_directory(tmp_path / "run", 7)
    assert verify_checkpoint(folder) == []
    assert read_manifest(folder).tokens_by_source == READ
    assert {Path(record.path).name for record in read_manifest(folder).files} == {
        "zero_to_fp32.py",
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
    }
    assert saver.last_step == 7


def test_disk_too_small_is_found_before_writing(checkpoints: Callable[[Path], Checkpoints], small_disk: Path) -> None:
    # fp32 weight and two moments: 12 bytes a parameter
    with pytest.raises(TrainingError, match=r"bytes free, a checkpoint takes 1,200,000; free some.*from the beginning"):
        save(checkpoints(small_disk), 7, size_bytes=10, num_parameters=100_000)
    assert list_steps(small_disk) == []


def test_disk_that_fills_while_writing_loses_nothing(
    checkpoints: Callable[[Path], Checkpoints], small_disk: Path
) -> None:
    saver = checkpoints(small_disk)
    kept = save(saver, 7, size_bytes=10)
    with pytest.raises(LocalError, match=r"rank 0: the checkpoint of step 8 could not be written.*of step 7"):
        save(saver, 8, size_bytes=2_000_000)
    assert list_steps(small_disk) == [7]
    assert verify_checkpoint(kept) == []


def test_rank_that_lost_its_peer_does_not_blame_the_disk(
    checkpoints: Callable[[Path], Checkpoints], tmp_path: Path
) -> None:
    def lose(*arguments: object, **options: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:9")

    widowed = engine(size_bytes=10)
    widowed.deepspeed.save_checkpoint = lose
    with pytest.raises(RuntimeError, match="closed by peer") as caught:
        checkpoints(tmp_path / "run").save(
            widowed, step=7, samples_consumed=7, validation_loss=1.5, probe=PROBE, tokens_by_source=READ
        )
    assert not isinstance(caught.value, TrainingError)


def test_each_file_is_described_by_the_rank_that_wrote_it(tmp_path: Path) -> None:
    names = [
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "zero_pp_rank_10_mp_rank_00_model_states.pt",
        "zero_to_fp32.py",
    ]
    for name in names:
        (tmp_path / name).touch()
    owned = {rank: sorted(path.name for path in _own_files(tmp_path, rank)) for rank in (0, 1, 10)}
    assert owned == {0: [names[0], names[3]], 1: [names[1]], 10: [names[2]]}
