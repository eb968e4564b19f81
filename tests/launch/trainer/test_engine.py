"""Where fresh weights come from; the engine itself is tested with real ranks in tests/integration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.config import Precision, TrainConfig, TrainingError
from launch.trainer.engine import _choose_fill, _prepare_checkpointing
from model.activation_checkpointing import ActivationCheckpointing
from model.hf import load_pretrained, save_pretrained
from model.init import initialize
from model.transformer import SmolLM2


@pytest.fixture
def weights(train_config: Callable[..., TrainConfig], tmp_path: Path) -> Path:
    """In float32."""
    model = SmolLM2(train_config().model)
    initialize(model, seed=5)
    save_pretrained(model, tmp_path / "weights", dtype=torch.float32)
    return tmp_path / "weights"


@pytest.mark.parametrize(("precision", "lines"), [("bfloat16", 1), ("float32", 0)])
def test_rounding_of_pretrained_weights_is_said(
    train_config: Callable[..., TrainConfig], weights: Path, precision: Precision, lines: int
) -> None:
    said: list[str] = []
    _choose_fill(train_config(init_from=weights, precision=precision), said.append)
    assert said == [f"the float32 weights of {weights} are rounded to bfloat16"] * lines


def test_activations_on_the_host_are_refused_where_the_device_is_the_host() -> None:
    settings = ActivationCheckpointing(mode="deepspeed", cpu_checkpointing=True)
    with pytest.raises(TrainingError, match="moves activations off a device and this one is the CPU; remove it"):
        _prepare_checkpointing(settings, device_type="cpu")


def test_another_base_of_the_rotary_angles_is_said(train_config: Callable[..., TrainConfig], weights: Path) -> None:
    said: list[str] = []
    model = {**train_config().model.model_dump(), "rope_theta": 100_000.0}
    _choose_fill(train_config(init_from=weights, model=model, precision="float32"), said.append)
    assert said == [
        f"model.rope_theta=100000, but the weights of {weights} were trained with 10000: "
        "another function, unless a longer context is to be trained"
    ]


def test_pretrained_weights_are_copied_by_name(train_config: Callable[..., TrainConfig], weights: Path) -> None:
    fill = _choose_fill(train_config(init_from=weights, precision="float32"), print)
    model = SmolLM2(train_config().model)
    for name, parameter in model.named_parameters():
        fill(name, parameter)
    for got, wanted in zip(model.parameters(), load_pretrained(weights).parameters(), strict=True):
        assert torch.equal(got, wanted)


def test_a_pretrained_weight_that_is_no_number_is_the_users_to_mend(
    train_config: Callable[..., TrainConfig], weights: Path
) -> None:
    file = weights / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    fill = _choose_fill(train_config(init_from=weights, precision="float32"), print)
    with pytest.raises(
        TrainingError, match=r"model\.norm\.weight holds 1 of 32 values that are NaN or infinite; fetch"
    ):
        fill("norm.weight", torch.empty(32))


def test_pretrained_weights_of_another_shape_are_refused(
    train_config: Callable[..., TrainConfig], weights: Path
) -> None:
    model = {**train_config().model.model_dump(), "num_hidden_layers": 3}
    with pytest.raises(TrainingError, match=r"model.num_hidden_layers=3 but init_from=.* has 2; set"):
        _choose_fill(train_config(init_from=weights, model=model), print)


def test_every_difference_of_shape_is_listed(train_config: Callable[..., TrainConfig], weights: Path) -> None:
    changes = {"vocab_size": 512, "hidden_size": 64, "num_key_value_heads": 1, "tie_word_embeddings": False}
    model = {**train_config().model.model_dump(), **changes}
    with pytest.raises(TrainingError) as caught:
        _choose_fill(train_config(init_from=weights, model=model), print)
    assert [line.split(" but ")[0] for line in str(caught.value).splitlines()] == [
        "model.vocab_size=512",
        "model.hidden_size=64",
        "model.num_key_value_heads=1",
        "model.tie_word_embeddings=False",
    ]
