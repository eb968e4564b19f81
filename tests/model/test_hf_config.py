from __future__ import annotations

from typing import Any

import pytest
import transformers

from model.config import SmolLM2Config
from model.hf_config import WeightsError, huggingface_config, read_huggingface_config

CONFIG = SmolLM2Config(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_theta=100_000.0,
)


def written(**changes: Any) -> dict[str, Any]:
    tree = {**huggingface_config(CONFIG, dtype="bfloat16"), **changes}
    return {key: value for key, value in tree.items() if value is not ...}


def read(**changes: Any) -> SmolLM2Config:
    return read_huggingface_config(written(**changes), origin="config.json")


def test_both_spellings_of_theta_and_dtype_are_written() -> None:
    tree = written()
    assert tree["rope_theta"] == tree["rope_parameters"]["rope_theta"] == 100_000.0
    assert tree["rope_parameters"]["rope_type"] == "default"
    assert tree["torch_dtype"] == tree["dtype"] == "bfloat16"
    assert (tree["model_type"], tree["architectures"]) == ("llama", ["LlamaForCausalLM"])


def test_what_is_written_is_read_back() -> None:
    assert read() == CONFIG


def test_theta_of_transformers_4_is_read() -> None:
    assert read(rope_parameters=..., rope_theta=130_000.0).rope_theta == 130_000.0


def test_theta_of_transformers_5_is_read() -> None:
    assert read(rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 130_000}).rope_theta == 130_000.0


def test_theta_is_10_000_where_none_is_said() -> None:
    assert read(rope_theta=..., rope_parameters=...).rope_theta == 10_000.0


def test_llama_defaults_stand_for_what_is_left_out() -> None:
    config = read(rms_norm_eps=..., tie_word_embeddings=..., num_key_value_heads=..., head_dim=...)
    assert (config.rms_norm_eps, config.tie_word_embeddings, config.num_key_value_heads) == (1e-6, False, 6)


def test_the_first_of_several_eos_ids_is_kept() -> None:
    assert read(eos_token_id=[2, 5]).eos_token_id == 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"attention_bias": True}, "attention_bias=true; this model has no biases"),
        ({"mlp_bias": True}, "mlp_bias=true; this model has no biases"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; this model computes silu only"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling of type 'linear'; this model computes unscaled rotary embeddings only",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "rope_parameters of type 'llama3'; this model computes unscaled rotary embeddings only",
        ),
        ({"head_dim": 16}, "head_dim=16; this model computes hidden_size / num_attention_heads, 8"),
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "architectures=['MistralForCausalLM'] of model_type='mistral'; "
            "wanted LlamaForCausalLM of model_type 'llama'",
        ),
        ({"sliding_window": 4096}, "sliding_window=4096; this model attends to the whole document"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5; this model rotates whole heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set; save the model dequantized first"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        (
            {"hidden_size": "many"},
            "hidden_size: input should be a valid integer, unable to parse string as an integer",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'; wanted an object or null"),
        ({"eos_token_id": []}, "eos_token_id: input should be a valid integer"),
        ({"vocab_size": 128_256}, "vocab_size: input should be less than or equal to 65536"),
        (
            {"num_attention_heads": 5, "head_dim": ...},
            "num_attention_heads=5 does not divide hidden_size=48; "
            "nearest with an even head_dim: num_attention_heads=4",
        ),
    ],
)
def test_what_is_not_computed_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(WeightsError) as caught:
        read(**changes)
    assert str(caught.value) == f"config.json: {line}"


def test_a_mistral_with_a_sliding_window_is_told_both() -> None:
    """As transformers writes it."""
    tree = transformers.MistralConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=2).to_dict()
    with pytest.raises(WeightsError) as caught:
        read_huggingface_config({**tree, "architectures": ["MistralForCausalLM"]}, origin="config.json")
    assert str(caught.value).splitlines() == [
        "config.json: architectures=['MistralForCausalLM'] of model_type='mistral'; "
        "wanted LlamaForCausalLM of model_type 'llama'",
        "config.json: sliding_window=4096; this model attends to the whole document",
    ]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(WeightsError) as caught:
        read(attention_bias=True, hidden_act="gelu", hidden_size=...)
    assert len(str(caught.value).splitlines()) == 3
