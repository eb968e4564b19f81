from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from model.config import SmolLM2Config
from model.init import fill_parameter_, initial_std, initialize
from model.parameters import parameter_shapes
from model.transformer import SmolLM2

CONFIG = SmolLM2Config(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    max_position_embeddings=16,
    initializer_range=0.05,
    tie_word_embeddings=False,
)


def filled(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    parameter = torch.empty(parameter_shapes(CONFIG)[name], dtype=dtype)
    fill_parameter_(name, parameter, config=CONFIG, seed=seed)
    return parameter


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embed_tokens.weight", 0.05),
        ("lm_head.weight", 0.05),
        ("layers.3.self_attn.q_proj.weight", 0.05),
        ("layers.3.mlp.gate_proj.weight", 0.05),
        ("layers.3.self_attn.o_proj.weight", 0.0125),  # 0.05 / sqrt(2 × 8 layers)
        ("layers.3.mlp.down_proj.weight", 0.0125),
    ],
)
def test_measured_std_is_the_wanted(name: str, std: float) -> None:
    values = filled(name)
    assert initial_std(name, CONFIG) == pytest.approx(std)
    # five standard errors of a standard deviation, std / sqrt(2n)
    assert values.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * values.numel()))
    assert values.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(values.numel()))


def test_norms_are_one() -> None:
    assert torch.equal(filled("layers.0.input_layernorm.weight"), torch.ones(128))


def test_order_does_not_matter() -> None:
    model = SmolLM2(CONFIG)
    initialize(model, seed=7)
    for name, parameter in reversed(list(model.named_parameters())):
        assert torch.equal(parameter, filled(name, seed=7)), name


def test_the_global_generator_neither_matters_nor_moves() -> None:
    torch.manual_seed(1)
    first = filled("lm_head.weight")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(filled("lm_head.weight"), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_seeds_differ() -> None:
    first = filled("layers.0.self_attn.q_proj.weight")
    assert not torch.equal(first, filled("layers.1.self_attn.q_proj.weight"))
    assert not torch.equal(first, filled("layers.0.self_attn.q_proj.weight", seed=1))


def test_bf16_is_the_fp32_rounded() -> None:
    name = "embed_tokens.weight"
    assert torch.equal(filled(name, dtype=torch.bfloat16), filled(name).to(torch.bfloat16))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"'layers.0.mlp.weight' is not a parameter of SmolLM2"):
        fill_parameter_("layers.0.mlp.weight", torch.empty(1), config=CONFIG, seed=0)


def test_first_loss_is_about_the_log_of_the_vocabulary(make_model: Any, tokens: Any) -> None:
    model = make_model(initializer_range=0.02)
    assert model(tokens, labels=tokens.roll(-1, 1)).item() == pytest.approx(math.log(97), abs=0.1)
