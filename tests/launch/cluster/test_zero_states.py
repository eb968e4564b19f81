"""The plan's states and traffic against real DeepSpeed engines: their tensors, and what torch.distributed is handed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from launch.cluster.zero_states import Zero, sent_bytes, zero_states
from launch.config import TrainConfig

ROOT = Path(__file__).resolve().parents[3]
MUON = ["optimizer.name=muon", "optimizer.muon_learning_rate=0.02", "optimizer.gradient_clipping=0"]


RunRanks = Callable[..., Any]


def engine_figures(
    run_ranks: RunRanks, folder: Path, settings: list[str], *, stage: int, world_size: int
) -> dict[str, Any]:
    script, out = Path(__file__).with_name("zero_states_rank.py"), folder / "figures.json"
    run_ranks(world_size, script, ROOT / "configs" / "train" / "demo.yaml", stage, out, *settings)
    return dict(json.loads(out.read_text()))


def check(
    run_ranks: RunRanks, tmp_path: Path, *, stage: int, world_size: int, precision: str, extra: list[str]
) -> None:
    settings = [
        f"run_dir={tmp_path / 'run'}",
        f"precision={precision}",
        "data.sequence_length=32",
        "micro_batch_size=1",
        f"batch_tokens={32 * 3 * world_size}",
        # so that what is left is states
        "zero.reduce_bucket_size=1000",
        "zero.param_persistence_threshold=0",
        *extra,
    ]
    config = load(ROOT / "configs" / "train" / "demo.yaml", TrainConfig, settings)
    counted = zero_states(config, Zero(stage), world_size=world_size)
    traffic = sent_bytes(config, Zero(stage), world_size=world_size)
    real = engine_figures(run_ranks, tmp_path, settings, stage=stage, world_size=world_size)
    print(
        f"stage {stage}, {world_size} ranks, {precision}: {counted.total:,} planned, {real['held_bytes']:,} held; "
        f"{traffic:,} planned, {real['sent_bytes']:,.0f} sent"
    )
    assert counted.total == pytest.approx(real["held_bytes"], rel=0.05)
    assert traffic == pytest.approx(real["sent_bytes"], rel=0.05)


@pytest.mark.campaign
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_states_and_traffic_are_deepspeeds(
    run_ranks: RunRanks, tmp_path: Path, stage: int, world_size: int, precision: str
) -> None:
    check(run_ranks, tmp_path, stage=stage, world_size=world_size, precision=precision, extra=[])


@pytest.mark.campaign
@pytest.mark.parametrize("world_size", [1, 2])
def test_muons_states_are_deepspeeds(run_ranks: RunRanks, tmp_path: Path, world_size: int) -> None:
    check(run_ranks, tmp_path, stage=3, world_size=world_size, precision="float32", extra=MUON)
