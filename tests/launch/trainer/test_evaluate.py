"""The validation loss and the probe, with a plain model in the engine's place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.trainer.engine import Engine
from launch.trainer.evaluate import measure_probe, validation_loss
from launch.trainer.inputs import probe_rows
from launch.trainer.optimizer import build_optimizer
from launch.trainer.ranks import RankEnvironment
from model.init import initialize
from model.transformer import SmolLM2


@pytest.fixture
def config(train_config: Callable[..., TrainConfig]) -> TrainConfig:
    return train_config(validation={"every_steps": 50, "sequences": 21})


@pytest.fixture
def samples(
    config: TrainConfig, make_dataset: Callable[..., Path], random_documents: Callable[..., list[list[int]]]
) -> PackedSamples:
    source = config.data.sources[0]
    make_dataset(source.path, random_documents(200), validation=random_documents(200, seed=1))
    return PackedSamples(
        [Source(source.name, source.path, 1.0)], seed=0, sequence_length=64, split="validation", shuffle=False
    )


@pytest.fixture
def engine(config: TrainConfig) -> Engine:
    model = SmolLM2(config.model)
    initialize(model, seed=3)
    optimizer = build_optimizer(model, config.optimizer)
    return Engine(model, optimizer, torch.device("cpu"), "cpu", 0)


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """What each rank would have given to the sum over ranks, in the order of the calls."""
    given: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: given.append(tensor.clone()))
    return given


def losses(engine: Engine, samples: PackedSamples, rows: int, *, masked: bool) -> torch.Tensor:
    """Of every token of the first rows, by the definition."""
    batch = samples.read(np.arange(rows))
    with torch.no_grad():
        logits = engine.deepspeed(batch.input_ids, document_ids=batch.document_ids if masked else None)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), batch.labels.flatten(), reduction="none")


@pytest.mark.usefixtures("summed")
def test_validation_loss_is_the_mean_over_all_tokens(
    engine: Engine, samples: PackedSamples, config: TrainConfig
) -> None:
    alone = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    expected = losses(engine, samples, 21, masked=True).mean().item()
    # fp32 losses against fp64 ones
    assert validation_loss(engine, samples, config, alone) == pytest.approx(expected, rel=1e-5)


def test_validation_loss_does_not_depend_on_the_number_of_ranks(
    engine: Engine, samples: PackedSamples, config: TrainConfig, summed: list[torch.Tensor]
) -> None:
    for rank in range(3):
        validation_loss(engine, samples, config, RankEnvironment(rank, 3, rank, None))
    total, count = torch.stack(summed).sum(dim=0).tolist()
    assert count == 21 * 64
    expected = losses(engine, samples, 21, masked=True).mean().item()
    assert total / count == pytest.approx(expected, rel=1e-5)


def test_probe_is_the_loss_of_whole_rows_without_documents(
    engine: Engine, samples: PackedSamples, config: TrainConfig
) -> None:
    probe = measure_probe(engine, samples, config)
    token_ids = torch.tensor(probe.token_ids)
    assert token_ids.shape == (probe_rows(64), 64)
    assert torch.equal(token_ids, samples.read(np.arange(probe_rows(64))).input_ids)
    # by position: all but the last of each row predict the next id of that row
    by_position = losses(engine, samples, probe_rows(64), masked=False).view(-1, 64)[:, :-1]
    assert probe.mean_negative_log_likelihood == pytest.approx(by_position.mean().item(), rel=1e-5)


@pytest.mark.usefixtures("summed")
def test_evaluation_leaves_the_model_in_training(engine: Engine, samples: PackedSamples, config: TrainConfig) -> None:
    engine.deepspeed.train()
    loss = validation_loss(engine, samples, config, RankEnvironment(0, 1, 0, None))
    assert math.isfinite(loss)
    assert engine.deepspeed.training
    assert all(parameter.grad is None for parameter in engine.deepspeed.parameters())
