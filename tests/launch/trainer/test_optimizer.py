"""Which parameters are in which group, and what the optimizers are told; Muon itself is in tests/integration."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from launch.config import OptimizerConfig
from launch.trainer.optimizer import build_optimizer, group_of, parameter_groups, set_learning_rate
from model.config import SmolLM2Config
from model.parameters import row_of
from model.transformer import SmolLM2

ADAMW = OptimizerConfig(learning_rate=1.0, weight_decay=0.1)
MUON = OptimizerConfig(
    name="muon", learning_rate=1.0, muon_learning_rate=0.5, muon_momentum=0.9, weight_decay=0.1, gradient_clipping=0
)


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
        assert group_of(name, ADAMW) == ("decay" if parameter.ndim == 2 else "no_decay"), name


def test_muon_has_the_layers_matrices_and_nothing_else(model: SmolLM2) -> None:
    for name, parameter in model.named_parameters():
        is_layers_matrix = parameter.ndim == 2 and name.startswith("layers.")
        assert (group_of(name, MUON) == "muon") == is_layers_matrix, name
    assert group_of("embed_tokens.weight", MUON) == group_of("lm_head.weight", MUON) == "decay"
    assert group_of("layers.1.input_layernorm.weight", MUON) == "no_decay"


@pytest.mark.parametrize(("config", "decays"), [(ADAMW, [0.1, 0.0]), (MUON, [0.1, 0.1, 0.0])], ids=["adamw", "muon"])
def test_every_parameter_is_in_one_group(model: SmolLM2, config: OptimizerConfig, decays: list[float]) -> None:
    groups = parameter_groups(model.named_parameters(), config)
    assert [group["weight_decay"] for group in groups] == decays
    # two norms a layer and the last one
    assert len(groups[-1]["params"]) == 5
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_unknown_parameter_stops_the_start() -> None:
    with pytest.raises(KeyError, match="adapter"):
        parameter_groups([("layers.0.adapter.weight", torch.nn.Parameter(torch.ones(1)))], ADAMW)


def test_optimizer_takes_the_users_constants(model: SmolLM2) -> None:
    config = OptimizerConfig(learning_rate=0.25, betas=(0.8, 0.9), eps=1e-7)
    defaults = build_optimizer(model, config).defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"]) == (0.25, (0.8, 0.9), 1e-7)


def test_muon_takes_the_users_constants(model: SmolLM2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    matrices, decay, _ = build_optimizer(model, MUON).param_groups
    assert (matrices["lr"], matrices["momentum"], matrices["ns_method"]) == (0.5, 0.9, "standard")
    assert (decay["lr"], decay["betas"], decay["eps"], decay["fused"]) == (1.0, (0.9, 0.95), 1e-8, True)
    for name, parameter in model.named_parameters():
        assert parameter.use_muon == (row_of(name).part in ("attention", "mlp")), name  # type: ignore[attr-defined]


def test_factor_reaches_every_group(model: SmolLM2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for config, wanted in ((ADAMW, [0.25, 0.25]), (MUON, [0.125, 0.25, 0.25])):
        optimizer = build_optimizer(model, config)
        set_learning_rate(optimizer, config, factor=0.25)
        assert [group["lr"] for group in optimizer.param_groups] == wanted


def flat_partition(steps: int, **settings: Any) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    """What ZeRO-3 gives the optimizer, after so many steps."""
    generator = torch.Generator().manual_seed(0)
    partition = torch.nn.Parameter(torch.randn(10_001, generator=generator))
    optimizer = torch.optim.AdamW([partition], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, **settings)
    for _ in range(steps):
        partition.grad = torch.randn(10_001, generator=generator)
        optimizer.step()
    return partition, optimizer


def test_fused_adamw_is_the_plain_one_on_a_flat_partition() -> None:
    fused, plain = flat_partition(20, fused=True)[0], flat_partition(20, foreach=False, fused=False)[0]
    # weights of about 1 in fp32, whose roundings differ: 20 steps of half a unit each
    torch.testing.assert_close(fused, plain, rtol=0, atol=20 * 2**-24)


def test_fused_adamw_goes_on_from_its_state_bit_for_bit() -> None:
    partition, optimizer = flat_partition(3, fused=True)
    copied = torch.nn.Parameter(partition.detach().clone())
    copied_optimizer = torch.optim.AdamW([copied], lr=1e-2, fused=True)
    copied_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, its_optimizer in ((partition, optimizer), (copied, copied_optimizer)):
        parameter.grad = torch.full_like(parameter, 0.3)
        its_optimizer.step()
    assert torch.equal(partition, copied)
