"""A trainer with stand-ins for the engine and for the saves, and all that it tells in the order in which it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoint.manifest import checkpoint_directory
from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.trainer import loop, saving
from launch.trainer.engine import Engine
from launch.trainer.evaluate import ValidationLosses
from launch.trainer.exchange import RankReport, StepReports
from launch.trainer.ledger import Ledger
from launch.trainer.loop import Trainer
from launch.trainer.ranks import RankEnvironment
from launch.trainer.state import Saved
from model.loss import LossTerms

LOSSES = ValidationLosses(loss=1.0, bits_per_byte=None, loss_by_source={}, bits_per_byte_by_source={})
DOCUMENTS = [[1 + number % 200] * 99 for number in range(40)]


class Told:
    """Stands for the event log, the saves and the console: everything in the order in which it came."""

    def __init__(self, run_dir: Path) -> None:
        self.order: list[str] = []
        self.fields: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.last_step: int | None = None
        self.under_way: Saved | None = None
        self.failure: Exception | None = None
        self._run_dir = run_dir

    def write(self, kind: str, *, step: int, **fields: Any) -> None:
        self.order.append(f"{step} {fields.get('state', kind)}")
        self.fields.append(fields)

    def sync(self) -> None:
        self.order.append("sync")

    def save(self, engine: Engine, *, step: int, **what: Any) -> None:
        self.order.append(f"{step} save")
        self.under_way = Saved(step, checkpoint_directory(self._run_dir, step), 0.1, 0.5)

    def check(self) -> Saved | None:
        """Saves end when they are waited for."""
        return None

    def finish(self, *, say: Callable[[str], None] | None = None) -> Saved | None:
        saved, self.under_way = self.under_way, None
        if saved is not None and self.failure is not None:
            raise self.failure
        if saved is not None:
            self.last_step = saved.step
        return saved

    def load(self, engine: Engine, *, step: int) -> None:
        self.order.append(f"{step} load")

    def before_update(self) -> None:
        if self.under_way is not None:
            self.order.append(f"copy of {self.under_way.step}")

    def line(self, text: str) -> None:
        self.lines.append(text)


class Model:
    """Stands for DeepSpeed's engine: a cross-entropy of 1, log Z of 5 and nothing to learn."""

    skipped_steps = 0

    def __call__(self, input_ids: torch.Tensor, *, z_loss_coefficient: float, **batch: Any) -> LossTerms:
        return LossTerms(torch.tensor(1.0 + z_loss_coefficient * 25), torch.ones(()))

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self) -> None: ...

    def get_global_grad_norm(self) -> float:
        return 1.0

    def was_step_applied(self) -> bool:
        return True


def alone(losses: torch.Tensor, gradient_square: torch.Tensor, **word: Any) -> StepReports:
    """The exchange of one rank with itself."""
    total, cross_entropy = losses.tolist()
    flags = tuple(word["stop_flags"])
    return StepReports((RankReport(total, cross_entropy, gradient_square.item(), word["own_time_s"], flags),))


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "run")


@pytest.fixture
def trainer(
    train_config: Callable[..., TrainConfig],
    make_dataset: Callable[..., Path],
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> Trainer:
    """Two steps, a checkpoint after each, validation before the first and after the last."""
    config = train_config(
        steps=2,
        schedule={"warmup_steps": 0},
        checkpoint={"every_steps": 1},
        validation={"every_steps": 2, "sequences": 8},
    )
    source = config.data.sources[0]
    make_dataset(source.path, DOCUMENTS, validation=DOCUMENTS)
    samples = PackedSamples([Source(source.name, source.path, 1.0)], seed=0, sequence_length=64)
    monkeypatch.setattr(loop, "exchange", alone)
    monkeypatch.setattr(loop, "local_gradient_square", lambda engine: torch.ones(()))
    monkeypatch.setattr(saving, "check_state", lambda *parts, **more: None)
    monkeypatch.setattr(loop, "validation_losses", lambda *parts: LOSSES)
    monkeypatch.setattr(saving, "measure_probe", lambda *parts: None)
    monkeypatch.setattr(saving, "check_probe", lambda *parts, **more: None)
    engine: Any = Engine(Model(), SimpleNamespace(param_groups=[{}]), torch.device("cpu"), "cpu", 0)  # type: ignore[arg-type]
    stand_in: Any = told
    return Trainer(
        config,
        RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None),
        engine=engine,
        train=samples,
        ledger=Ledger(config, samples),
        validation=samples,
        checkpoints=stand_in,
        console=stand_in,
        events=stand_in,
        first_step=0,
    )
