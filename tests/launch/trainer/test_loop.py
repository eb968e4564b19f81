"""The order of what a run does and tells, with stand-ins for the engine and for the saves; one rank."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from launch.config import CheckpointConfig, TrainingError
from launch.data.loader import Loader
from launch.supervision_config import ProfileConfig
from launch.trainer import loop, stop_request
from launch.trainer.evaluate import ValidationLosses
from launch.trainer.loop import Trainer
from launch.trainer.profiler import StepProfiler
from launch.trainer.stop_request import StopRequests, request_stop


def test_what_was_told_is_on_the_disk_before_the_checkpoint_that_makes_it_final(trainer: Trainer, told: Any) -> None:
    assert trainer.run() == 0
    assert told.order == [
        *("0 metrics", "1 metrics", "sync", "1 save", "copy of 1", "2 metrics", "2 metrics"),
        # the second save waits for the first, and says how long
        *("1 metrics", "1 checkpoint", "sync", "2 metrics", "sync", "2 save"),
        *("2 metrics", "2 checkpoint", "sync", "2 finished", "sync"),
    ]
    waited = [fields["checkpoint/wait_time_s"] for fields in told.fields if "checkpoint/wait_time_s" in fields]
    assert len(waited) == 1
    assert {"checkpoint/stall_time_s": 0.1, "checkpoint/save_time_s": 0.5} in told.fields


def test_blocking_save_is_told_before_the_next_step(trainer: Trainer, told: Any) -> None:
    blocking = CheckpointConfig(every_steps=1, asynchronous=False)
    trainer._saves._config = trainer.config.model_copy(update={"checkpoint": blocking})
    assert trainer.run() == 0
    assert told.order[3:7] == ["1 save", "1 metrics", "1 checkpoint", "sync"]
    assert "copy of 1" not in told.order


def test_failed_save_stops_the_run_and_is_not_told_as_a_checkpoint(trainer: Trainer, told: Any) -> None:
    told.failure = TrainingError("rank 1: the checkpoint of step 1 could not be written")
    with pytest.raises(TrainingError, match="rank 1: the checkpoint of step 1 could not be written"):
        trainer.run()
    assert "1 checkpoint" not in told.order
    assert "2 save" not in told.order


def test_save_under_way_ends_before_a_diverged_run_stops(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(engine: Any) -> torch.Tensor:
        if trainer.step == 1:
            raise TrainingError("diverged")
        return torch.ones(())

    monkeypatch.setattr(loop, "local_gradient_square", diverge)
    with pytest.raises(TrainingError, match="diverged"):
        trainer.run()
    assert told.order[-3:] == ["1 metrics", "1 checkpoint", "sync"]


def test_the_reported_loss_is_the_cross_entropy_and_the_z_loss_a_metric_of_its_own(trainer: Trainer, told: Any) -> None:
    trainer.config = trainer.config.model_copy(update={"z_loss_coefficient": 0.5})
    trainer.run()
    steps = [fields for fields in told.fields if "train/loss" in fields]
    assert [(fields["train/loss"], fields["train/z_loss"]) for fields in steps] == [(1.0, 12.5)] * 2


def test_without_a_z_loss_there_is_no_metric_of_it(trainer: Trainer, told: Any) -> None:
    trainer.run()
    assert not any("train/z_loss" in fields for fields in told.fields)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signal_during_the_first_evaluation_stops_after_the_first_step(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    usual: Any = loop.validation_losses

    def interrupted(*parts: Any) -> ValidationLosses:
        os.kill(os.getpid(), number)
        losses: ValidationLosses = usual()
        return losses

    # without this a signal that nobody notes would end the tests
    before = signal.signal(number, lambda number, frame: None)
    monkeypatch.setattr(loop, "validation_losses", interrupted)
    try:
        assert trainer.run() == code
    finally:
        signal.signal(number, before)
    assert told.order[-3:] == ["sync", "1 killed", "sync"]
    assert "1 save" in told.order


def test_checkpoint_of_a_stopped_run_does_not_wait_for_the_end_of_the_reading(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs may hold up the reading for longer than who asks to stop lets the run live."""
    usual = Loader.close

    def close(loader: Loader) -> None:
        told.order.append("close")
        usual(loader)

    monkeypatch.setattr(Loader, "close", close)
    monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)
    trainer.config.run_dir.mkdir(exist_ok=True)
    request_stop(trainer.config.run_dir, signal.SIGTERM)
    assert trainer.run() == 143
    assert told.order[-6:] == ["1 metrics", "1 checkpoint", "sync", "close", "1 killed", "sync"]


def test_request_in_the_runs_folder_stops_the_run_and_is_taken_away(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)
    trainer.config.run_dir.mkdir(exist_ok=True)
    request_stop(trainer.config.run_dir, signal.SIGUSR1)
    assert trainer.run() == 138
    assert told.order[-2:] == ["1 killed", "sync"]
    assert StopRequests(trainer.config.run_dir).look() is None


def test_traces_and_the_end_of_the_reading_are_given_the_time_of_a_pause(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may take longer than the parts of a step, by which a hang is known."""
    during: list[tuple[str, bool]] = []

    def note(*parts: Any) -> None:
        during.append((trainer._heartbeat.phase_name, trainer._heartbeat._is_pause))

    trainer._profiler = StepProfiler(ProfileConfig(steps="1"), run_dir=trainer.config.run_dir, rank=0)
    monkeypatch.setattr(StepProfiler, "before", lambda self, step: setattr(self, "_profiler", object()))
    monkeypatch.setattr(StepProfiler, "write", note)
    monkeypatch.setattr(Loader, "close", note)
    assert trainer.run() == 0
    assert during == [("profile", True), ("data", True)]


@pytest.mark.parametrize(("compiled", "builds_until"), [("layers", 1), ("deepcompile", 6)])
def test_steps_up_to_the_last_build_are_given_the_time_of_a_pause(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, compiled: str, builds_until: int
) -> None:
    paused: list[bool] = []

    def note(engine: Any) -> torch.Tensor:
        paused.append(trainer._heartbeat._is_pause)
        return torch.ones(())

    trainer.config = trainer.config.model_copy(update={"compile": compiled, "steps": 8})
    monkeypatch.setattr(loop, "local_gradient_square", note)
    assert trainer.run() == 0
    assert paused == [step <= builds_until for step in range(1, 9)]


def test_what_ended_the_run_is_told_beside_a_save_that_failed_too(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(engine: Any) -> torch.Tensor:
        if trainer.step == 1:
            raise TrainingError("diverged")
        return torch.ones(())

    monkeypatch.setattr(loop, "local_gradient_square", diverge)
    told.failure = TrainingError("rank 0: no space left")
    with pytest.raises(TrainingError, match=r"^diverged\nrank 0: no space left$"):
        trainer.run()
