from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load
from model.config import SmolLM2Config
from model.cost import count_parameters, count_with_gate_and_up_as_one, flops_per_token, zero3_state_bytes

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
