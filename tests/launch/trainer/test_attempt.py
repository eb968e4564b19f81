"""What an attempt makes of its data, and how it ends when a part of it fails; without a process group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoint.events import events_file, read_events
from launch.config import TrainConfig, TrainingError
from launch.data.validation_set import validation_shards
from launch.trainer import attempt
from launch.trainer.console import Console
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.ranks import RankEnvironment
from launch.trainer.run_folder import StartPoint


@pytest.fixture
def fail(
    train_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Runs an attempt whose model cannot be built, which raises TrainingError."""

    def cannot(*parts: Any) -> None:
        raise TrainingError("the cause")

    device = SimpleNamespace(set_device=lambda rank: None, device_name=lambda: "none")
    monkeypatch.setattr(attempt, "get_accelerator", lambda: device)
    monkeypatch.setattr(attempt.deepspeed, "init_distributed", lambda verbose, timeout: None)
    monkeypatch.setattr(attempt, "_share", lambda start: start)
    monkeypatch.setattr(attempt, "_build", cannot)
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    console = Console(rank=0, log=tmp_path / "log", stdout=1, stderr=2)
    inputs: Any = None
    return lambda: attempt.run_attempt(train_config(), ranks, console, inputs, StartPoint(7, "key", ()), Heartbeat())  # type: ignore[return-value]


def test_failure_is_told_with_its_step_and_reason(fail: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the cause"):
        fail()
    [event] = [event for event, _ in read_events(events_file(tmp_path / "run"))]
    assert (event.step, event.fields["state"]) == (7, "failed")
    assert event.fields["reason"].endswith("TrainingError: the cause")


def test_failure_that_a_full_disk_cannot_take_down_keeps_its_cause(fail: Callable[[], None], tmp_path: Path) -> None:
    events_file(tmp_path / "run").parent.mkdir(parents=True)
    events_file(tmp_path / "run").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="the cause"):
        fail()


def test_process_group_waits_longer_than_the_watchdog(
    fail: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's 10 minutes would end the ranks that wait for rank 0, which verifies a large checkpoint."""
    given: list[timedelta] = []
    monkeypatch.setattr(attempt.deepspeed, "init_distributed", lambda verbose, timeout: given.append(timeout))
    with pytest.raises(TrainingError, match="the cause"):
        fail()
    assert given == [timedelta(seconds=1800 + 120)]


def test_what_cannot_compute_here_is_said_before_the_weights_are_made(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_check_same_datasets", lambda *parts: None)
    monkeypatch.setattr(attempt, "_samples", lambda *parts: None)
    monkeypatch.setattr(attempt, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cpu"))
    monkeypatch.setattr(attempt, "build_engine", lambda *parts, **settings: pytest.fail("they were made"))
    config = train_config(loss_implementation="liger")
    anything: Any = None
    with pytest.raises(TrainingError, match=r"^loss_implementation=liger needs a CUDA device, got cpu; take chunked$"):
        attempt._build(config, anything, anything, anything, StartPoint(0, "key", ()), anything, anything, 0.0)


def test_validation_shards_are_kept_in_the_cache(
    train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    documents = [[1 + number % 200] * 99 for number in range(40)]
    folder = make_dataset(tmp_path / "data", documents, validation=documents, documents_per_shard=10)
    sources = [{"name": "chain", "path": f"file://{folder}"}]
    data = {"sources": sources, "sequence_length": 64, "cache_dir": tmp_path / "cache"}
    config = train_config(data=data, validation={"every_steps": 50, "sequences": 4})
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    train, validation = (attempt._samples(config, ranks, split) for split in ("train", "validation"))
    assert train.cache is validation.cache is not None
    # the probe of an export reads 16 sequences of 64 tokens, 11 documents
    assert train.cache.kept == validation_shards(validation, sequences=16)
    assert {path.name for path in train.cache.kept} == {"data-00000-000.arrow", "data-00001-000.arrow"}
