from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from configs.load import load
from model.activation_checkpointing import ActivationCheckpointing
from model.config import SmolLM2Config
from model.cost import (
    count_parameters,
    count_with_gate_and_up_as_one,
    flops_per_token,
    recomputed_flops_per_token,
    true_flops_per_token,
    zero3_state_bytes,
)
from model.init import initialize
from model.transformer import SmolLM2

MODELS = Path(__file__).resolve().parents[2] / "configs" / "model"


def config_of(name: str) -> SmolLM2Config:
    return load(MODELS / f"{name}.yaml", SmolLM2Config)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("smollm2-seed", 147_786_048),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("demo", 2_229_888),
    ],
)
def test_totals_are_the_published(name: str, total: int) -> None:
    assert count_parameters(config_of(name)).total == total


def test_every_config_is_counted_above() -> None:
    assert {file.stem for file in MODELS.glob("*.yaml")} == {
        "smollm2-seed",
        "smollm2-135m",
        "smollm2-360m",
        "smollm2-1.7b",
        "demo",
    }


def test_parts_by_hand() -> None:
    count = count_parameters(config_of("smollm2-135m"))
    assert count.embedding == 49_152 * 576
    assert count.attention == 30 * (2 * 576 * 576 + 2 * 576 * 192)
    assert count.mlp == 30 * 3 * 576 * 1_536
    assert count.norms == 30 * 2 * 576 + 576
    assert count.head == 0


def test_untied_head_is_counted() -> None:
    tied = config_of("demo")
    untied = tied.model_copy(update={"tie_word_embeddings": False})
    assert count_parameters(untied).head == 8_192 * 128
    assert count_parameters(untied).total - count_parameters(tied).total == 8_192 * 128


def test_gate_and_up_as_one_is_the_seed_document_s_tally() -> None:
    assert count_with_gate_and_up_as_one(config_of("smollm2-seed")) == 121_243_968


def test_flops_by_hand() -> None:
    assert flops_per_token(config_of("smollm2-135m"), sequence_length=2_048) == (
        6 * 134_515_008 + 12 * 30 * 576 * 2_048
    )


def test_zero3_states_are_18_bytes_a_parameter_in_bf16_and_20_in_fp32() -> None:
    config = config_of("demo")
    assert zero3_state_bytes(config, dtype="bf16").total == 18 * 2_229_888
    assert zero3_state_bytes(config, dtype="fp32").total == 20 * 2_229_888
    assert zero3_state_bytes(config).moments == 8 * 2_229_888


def test_true_flops_count_pairs_within_documents() -> None:
    config = config_of("demo")
    weights = count_parameters(config).total - count_parameters(config).norms
    # 3 tokens see 1 + 2 + 3 tokens, 2 see 1 + 2: nine pairs over five tokens
    pairs = 12 * config.num_hidden_layers * config.hidden_size * 9 / 5
    assert true_flops_per_token(config, document_lengths=[3, 2]) == 6 * weights + pairs


def test_one_long_document_needs_half_of_the_stated_attention() -> None:
    config = config_of("smollm2-135m")
    stated = flops_per_token(config, sequence_length=2_048)
    true = true_flops_per_token(config, document_lengths=[2_048])
    norms, attention = 6 * count_parameters(config).norms, 12 * 30 * 576 * 2_048
    assert stated - true == norms + attention - attention * 2_049 / 4_096


def counted_flops(model: Any, tokens: torch.Tensor) -> float:
    """A step's matrix products a token, by torch's counter, which does not know the chunked loss's in-place ones."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    return counter.get_total_flops() / tokens.numel()


def test_stated_flops_are_torchs_count_and_the_norms(make_model: Any, tokens: torch.Tensor) -> None:
    # eager multiplies whole squares, as the stated definition counts them
    model = make_model(attn_implementation="eager")
    stated = flops_per_token(model.config, sequence_length=tokens.shape[1])
    assert counted_flops(model, tokens) == stated - 6 * count_parameters(model.config).norms


@pytest.mark.parametrize(
    ("mode", "every"), [("full", None), ("every_n_layers", 2), ("selective", None), ("selective", 2)]
)
def test_recomputed_flops_are_torchs_count(make_model: Any, tokens: torch.Tensor, mode: Any, every: int | None) -> None:
    checkpointing = ActivationCheckpointing(mode=mode, every_n_layers=every)
    plain = make_model(attn_implementation="eager")
    recomputing = make_model(attn_implementation="eager", activation_checkpointing=checkpointing)
    added = recomputed_flops_per_token(
        plain.config, checkpointing, sequence_length=tokens.shape[1], eager_attention=True
    )
    assert added > 0
    assert counted_flops(recomputing, tokens) - counted_flops(plain, tokens) == pytest.approx(added, abs=1e-6)


def test_a_function_that_cannot_stop_early_runs_the_whole_layer_again(make_model: Any, tokens: torch.Tensor) -> None:
    # DeepSpeed's is reentrant as torch's other one, and is compared with it in test_zero3.py
    checkpointing = ActivationCheckpointing(mode="deepspeed")
    plain = make_model(attn_implementation="eager")
    recomputing = SmolLM2(
        plain.config,
        attn_implementation="eager",
        activation_checkpointing=checkpointing,
        deepspeed_checkpoint=functools.partial(checkpoint, use_reentrant=True),
    )
    initialize(recomputing, seed=0)
    added = recomputed_flops_per_token(
        plain.config, checkpointing, sequence_length=tokens.shape[1], eager_attention=True
    )
    assert counted_flops(recomputing, tokens) - counted_flops(plain, tokens) == pytest.approx(added, abs=1e-6)


def test_a_compiled_layer_is_run_again_to_its_end() -> None:
    config = config_of("smollm2-135m")
    full = ActivationCheckpointing(mode="full")
    plain, compiled, deepspeed = (
        recomputed_flops_per_token(config, mode, sequence_length=2_048, eager_attention=False, compiled=compiled)
        for mode, compiled in ((full, False), (full, True), (ActivationCheckpointing(mode="deepspeed"), False))
    )
    assert compiled == deepspeed == plain + 2 * 30 * 576 * 1_536
