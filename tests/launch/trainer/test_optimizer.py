"""Which parameters decay, and that AdamW is told so."""

from __future__ import annotations

import pytest
import torch

from launch.config import OptimizerConfig
from launch.trainer.optimizer import build_optimizer, decays, parameter_groups, set_learning_rate
from model.config import SmolLM2Config
from model.transformer import SmolLM2


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> SmolLM2:
    return SmolLM2(
        SmolLM2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=8,
            tie_word_embeddings=request.param,
        )
    )


def test_matrices_decay_and_vectors_do_not(model: SmolLM2) -> None:
    for name, parameter in model.named_parameters():
        assert decays(name) == (parameter.ndim == 2), name


def test_every_parameter_is_in_one_group(model: SmolLM2) -> None:
    groups = parameter_groups(model.named_parameters(), OptimizerConfig(learning_rate=1.0, weight_decay=0.1))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    # two norms a layer and the last one
    assert len(groups[1]["params"]) == 5
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_unknown_parameter_stops_the_start() -> None:
    with pytest.raises(KeyError, match="adapter"):
        parameter_groups(
            [("layers.0.adapter.weight", torch.nn.Parameter(torch.ones(1)))], OptimizerConfig(learning_rate=1)
        )


def test_optimizer_takes_the_users_constants(model: SmolLM2) -> None:
    config = OptimizerConfig(learning_rate=0.25, betas=(0.8, 0.9), eps=1e-7)
    defaults = build_optimizer(model, config, device_type="cpu").defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"]) == (0.25, (0.8, 0.9), 1e-7)


def test_learning_rate_reaches_every_group(model: SmolLM2) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1.0), device_type="cpu")
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
