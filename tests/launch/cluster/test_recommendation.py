"""What a plan would take, and the words it has for what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load
from launch.cluster.plan import Assumptions
from launch.cluster.recommendation import Recommendation, recommend, trainable_stages
from launch.config import TrainConfig

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "train"


def recommended(recipe: str, *overrides: str, device: str = "h100", world_size: int = 8) -> Recommendation:
    config = load(RECIPES / f"{recipe}.yaml", TrainConfig, overrides)
    return recommend(config, Assumptions(device=device), world_size=world_size, stages=(0, 1, 2, 3))


def test_only_what_the_config_takes_is_recommended() -> None:
    config = load(RECIPES / "smollm2-135m.yaml", TrainConfig)
    stages = trainable_stages(config)
    assert 3 in stages
    for stage in stages:
        assert load(RECIPES / "smollm2-135m.yaml", TrainConfig, [f"zero.stage={stage}"]).zero.stage == stage
    for stage in {0, 1, 2, 3} - set(stages):
        with pytest.raises(ConfigError, match=f"stage={stage}"):
            load(RECIPES / "smollm2-135m.yaml", TrainConfig, [f"zero.stage={stage}"])
    found = recommend(config, Assumptions(), world_size=8, stages=(3,))
    assert found.overrides[0] == "zero.stage=3"
    assert not any(reason.startswith("stage") for reason in found.reasons)


def test_small_model_on_large_gpus_keeps_everything_whole() -> None:
    found = recommended("smollm2-135m")
    assert found.overrides[0] == "zero.stage=0"
    assert found.overrides[2] == "activation_checkpointing=none"
    assert any(reason.startswith("stage 3 sends ") and "is no faster" in reason for reason in found.reasons)
    assert any(reason.startswith("full activation checkpointing takes ") for reason in found.reasons)


def test_states_that_do_not_fit_whole_are_divided() -> None:
    found = recommended("smollm2-1.7b", device="rtx4090")
    assert found.row is not None
    assert found.row.fits
    assert any(reason.startswith("stage 0 takes ") and reason.endswith("GiB of 22.08") for reason in found.reasons)


def test_next_micro_batch_is_answered_for() -> None:
    found = recommended("smollm2-1.7b")
    assert any(reason.startswith("micro-batch ") for reason in found.reasons)
    alone = recommended("smollm2-1.7b", "batch_tokens=65536", world_size=8)
    assert "micro-batch 4 is all that a rank has of a step, or the most that is tried" in alone.reasons


def test_nothing_fits_says_the_least() -> None:
    found = recommended("smollm2-1.7b", device="rtx4090", world_size=1)
    assert (found.row, found.overrides) == (None, ())
    [reason] = found.reasons
    assert reason.startswith("nothing fits: the least is ")
    assert reason.endswith("GiB of 22.08 (ZeRO 2, micro-batch 1, full); take more GPUs or larger ones")
