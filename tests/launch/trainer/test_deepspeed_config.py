"""The JSON that DeepSpeed gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer.deepspeed_config import deepspeed_config


@pytest.fixture
def settings(train_config: Callable[..., TrainConfig]) -> dict[str, object]:
    return deepspeed_config(train_config(), world_size=2)


def test_batch_is_micro_batch_times_accumulation_times_ranks(settings: dict[str, object]) -> None:
    # 1024 tokens in sequences of 64 are 16 samples
    assert settings["train_batch_size"] == 16
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 2


def test_bfloat16_sums_gradients_in_float32(settings: dict[str, object]) -> None:
    assert settings["bf16"] == {"enabled": True}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["communication_data_type"] == "fp32"


def test_float32_turns_bfloat16_off(train_config: Callable[..., TrainConfig]) -> None:
    assert deepspeed_config(train_config(precision="float32"), world_size=1)["bf16"] == {"enabled": False}


def test_reduce_dtype_is_the_users(train_config: Callable[..., TrainConfig]) -> None:
    settings = deepspeed_config(train_config(zero={"reduce_dtype": "bfloat16"}), world_size=1)
    assert settings["communication_data_type"] == "bf16"


def test_clipping_and_stage_are_passed_on(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(optimizer={"learning_rate": 1e-3, "gradient_clipping": 0.5})
    settings = deepspeed_config(config, world_size=1)
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("stage", [1, 2])
def test_lower_stage_is_passed_on(train_config: Callable[..., TrainConfig], stage: int) -> None:
    settings = deepspeed_config(train_config(zero={"stage": stage}), world_size=2)
    assert settings["zero_optimization"]["stage"] == stage


def test_gradients_are_scattered_except_for_muon(train_config: Callable[..., TrainConfig]) -> None:
    muon = {"name": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.02, "gradient_clipping": 0}
    settings = [deepspeed_config(config, world_size=2) for config in (train_config(), train_config(optimizer=muon))]
    assert [one["zero_optimization"]["reduce_scatter"] for one in settings] == [True, False]


def test_batch_that_does_not_divide_is_refused(train_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(TrainingError, match="use batch_tokens=768 or 1536"):
        deepspeed_config(train_config(), world_size=3)


def test_deepspeed_reads_what_is_meant(
    train_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = train_config(zero={"param_persistence_threshold": 7, "max_live_parameters": 11})
    parsed = DeepSpeedConfig(deepspeed_config(config, world_size=1))
    assert parsed.grad_accum_dtype == "fp32"
    assert parsed.checkpoint_tag_validation_fail
    assert (parsed.zero_config.param_persistence_threshold, parsed.zero_config.max_live_parameters) == (7, 11)


@pytest.mark.parametrize("name", ["reduce_scatter", "memory_efficient_linear"])
@pytest.mark.parametrize(("world_size", "shares"), [(1, False), (2, True)])
def test_one_rank_does_not_pay_for_sharing(
    train_config: Callable[..., TrainConfig], name: str, world_size: int, shares: bool
) -> None:
    settings = deepspeed_config(train_config(), world_size=world_size)
    assert settings["zero_optimization"][name] is shares
