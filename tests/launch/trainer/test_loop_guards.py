"""What a run does about a spike, or a step that no rank may take; one rank, with stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from launch.config import CheckpointConfig, TrainConfig
from launch.supervision_config import GuardsConfig, RewindConfig
from launch.trainer import loop
from launch.trainer.exchange import StepReports
from launch.trainer.guards import Spike
from launch.trainer.loop import Trainer
from launch.trainer.rewinds import Rewind, read_rewinds

SPIKE = Spike(loss=3.0, median=1.0, z=20.0)


def spike_at(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    seen = iter(range(1, 100))
    monkeypatch.setattr(trainer._oversight._spikes, "look", lambda loss: SPIKE if next(seen) in steps else None)


def guarded(trainer: Trainer, **rewind: int) -> TrainConfig:
    guards = GuardsConfig(rewind=RewindConfig(**rewind), replicas_every_steps=1000)
    trainer.config.run_dir.mkdir(exist_ok=True)
    changes = {"guards": guards, "steps": 5, "checkpoint": CheckpointConfig(every_steps=2)}
    return trainer.config.model_copy(update=changes)


def test_spike_leads_back_to_the_save_that_was_under_way(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.config = guarded(trainer, max_rewinds=1)
    spike_at(trainer, monkeypatch, 3)
    assert trainer.run() == 0
    back = told.order.index("2 load")
    assert told.order[back - 5 : back] == ["3 incident", "2 metrics", "2 checkpoint", "sync", "3 incident"]
    assert trainer.rewinds == (Rewind(3, 2, 1),)
    assert told.order[back + 1] == "3 metrics"


def test_spike_in_the_step_that_a_signal_stops_is_left_to_the_next_start(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the spike has made of the weights must not become the newest checkpoint."""
    trainer.config = guarded(trainer, max_rewinds=1)
    spike_at(trainer, monkeypatch, 3)
    monkeypatch.setattr(loop, "exchange", stopped_at(trainer, 3))
    assert trainer.run() == 143
    assert "3 save" not in told.order
    assert "2 load" not in told.order
    assert read_rewinds(trainer.config.run_dir) == (Rewind(3, 2, 1),)
    assert told.order[-2:] == ["2 killed", "sync"]


def stopped_at(trainer: Trainer, step: int) -> Callable[..., StepReports]:
    usual: Any = loop.exchange

    def exchange(losses: torch.Tensor, gradient_square: torch.Tensor, **word: Any) -> StepReports:
        flags = [1.0, 0.0, 0.0] if trainer.step == step - 1 else [0.0] * 3
        reports: StepReports = usual(losses, gradient_square, **word | {"stop_flags": flags})
        return reports

    return exchange


def test_spike_that_nothing_can_be_done_about_is_told_as_such(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.config = guarded(trainer, max_rewinds=1)
    spike_at(trainer, monkeypatch, 1)
    assert trainer.run() == 0
    assert trainer.rewinds == ()
    assert "step 1/5  the run goes on through the spike: there is no checkpoint to go back to" in told.lines


def test_save_that_a_bad_step_forbids_comes_after_the_next_good_one(
    trainer: Trainer, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.config = guarded(trainer)
    monkeypatch.setattr(
        loop, "local_gradient_square", lambda engine: torch.tensor(torch.nan if trainer.step == 1 else 1.0)
    )
    monkeypatch.setattr(loop, "leave_step_out", lambda engine: None)
    assert trainer.run() == 0
    assert [line for line in told.order if line.endswith(" save")] == ["3 save", "4 save", "5 save"]
