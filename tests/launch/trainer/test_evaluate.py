"""The validation loss and the probe, with a plain model in the engine's place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.config import TrainConfig
from launch.data.loader import PackedSamples, Source
from launch.trainer import evaluate
from launch.trainer.engine import Engine
from launch.trainer.evaluate import measure_probe, validation_losses
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
    assert validation_losses(engine, samples, config, alone).loss == pytest.approx(expected, rel=1e-5)


def test_validation_loss_does_not_depend_on_the_number_of_ranks(
    engine: Engine, samples: PackedSamples, config: TrainConfig, summed: list[torch.Tensor]
) -> None:
    for rank in range(3):
        validation_losses(engine, samples, config, RankEnvironment(rank, 3, rank, None))
    [[total, count, _]] = torch.stack(summed).sum(dim=0).tolist()
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
    losses = validation_losses(engine, samples, config, RankEnvironment(0, 1, 0, None))
    assert math.isfinite(losses.loss)
    assert engine.deepspeed.training
    assert all(parameter.grad is None for parameter in engine.deepspeed.parameters())


@pytest.fixture
def two_sources(
    config: TrainConfig, tmp_path: Path, make_dataset: Callable[..., Path], byte_level: str
) -> PackedSamples:
    """Two of three sequences are web's; the tokenizer's ids 1 to 255 are a byte each, but 7, which is two."""
    sources = []
    for name, weight, seed in (("web", 2.0, 1), ("code", 1.0, 2)):
        documents = [[1 + (seed * 31 + row + place) % 200 for place in range(60)] for row in range(40)]
        folder = make_dataset(tmp_path / name, documents, validation=documents)
        (folder / "tokenizer.json").write_text(byte_level)
        sources.append(Source(name, folder, weight))
    return PackedSamples(sources, seed=0, sequence_length=64, split="validation", shuffle=False)


@pytest.fixture
def byte_level() -> str:
    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + number): number for number in range(1, 256)} | {"ab": 7}
    special = {"id": 0, "content": "<|endoftext|>", "special": True}
    return json.dumps({"decoder": {"type": "ByteLevel"}, "model": {"vocab": vocabulary}, "added_tokens": [special]})


def test_losses_by_source_are_means_over_its_own_sequences(
    engine: Engine, two_sources: PackedSamples, config: TrainConfig, summed: list[torch.Tensor]
) -> None:
    sources, _ = two_sources.locate(np.arange(21))
    by_token = losses(engine, two_sources, 21, masked=True).view(21, 64)
    labels = two_sources.read(np.arange(21)).labels.numpy()
    text_bytes = (labels != 0) + (labels == 7)
    for world_size in (1, 3, 4):
        for rank in range(world_size):
            told = validation_losses(engine, two_sources, config, RankEnvironment(rank, world_size, rank, None))
        sums = torch.stack(summed).sum(dim=0)
        summed.clear()
        for source in (0, 1):
            own = by_token[sources == source]
            total, tokens, size = sums[source].tolist()
            assert total == pytest.approx(own.sum().item(), rel=1e-5)
            assert (tokens, size) == (own.numel(), text_bytes[sources == source].sum())
        if world_size == 1:
            nats = [by_token[sources == source].mean().item() for source in (0, 1)]
            bits = [
                by_token[sources == source].sum().item() / math.log(2) / text_bytes[sources == source].sum()
                for source in (0, 1)
            ]
            assert told.metrics() == pytest.approx(
                {
                    "validation/loss": by_token.mean().item(),
                    "validation/bits_per_byte": by_token.sum().item() / math.log(2) / text_bytes.sum(),
                    "validation_loss/web": nats[0],
                    "validation_loss/code": nats[1],
                    "validation_bits_per_byte/web": bits[0],
                    "validation_bits_per_byte/code": bits[1],
                },
                rel=1e-5,
            )


@pytest.mark.usefixtures("summed")
def test_without_bytes_there_are_nats_only(engine: Engine, samples: PackedSamples, config: TrainConfig) -> None:
    told = validation_losses(engine, samples, config, RankEnvironment(0, 1, 0, None)).metrics()
    assert list(told) == ["validation/loss", "validation_loss/chain"]


def test_node_without_the_tokenizer_leaves_bits_untold_and_not_wrong(
    engine: Engine,
    two_sources: PackedSamples,
    config: TrainConfig,
    summed: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = validation_losses(engine, two_sources, config, RankEnvironment(0, 1, 0, None))
    assert whole.bits_per_byte is not None
    summed.clear()
    validation_losses(engine, two_sources, config, RankEnvironment(0, 2, 0, None))
    monkeypatch.setattr(evaluate, "read_token_bytes", lambda file: None)
    validation_losses(engine, two_sources, config, RankEnvironment(1, 2, 0, None))
    together = evaluate._means(torch.stack(summed).sum(dim=0), ["web", "code"])
    assert together.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (together.bits_per_byte, together.bits_per_byte_by_source) == (None, {})
