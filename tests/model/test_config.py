from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from pydantic import ValidationError

from model.config import SmolLM2Config

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def message_of(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        SmolLM2Config.model_validate({**SIZES, **changes})
    return str(caught.value)


def test_heads_that_do_not_divide_name_the_nearest() -> None:
    assert (
        "num_attention_heads=5 does not divide hidden_size=48; nearest with an even head_dim: num_attention_heads=4"
    ) in message_of(num_attention_heads=5)


def test_the_heads_that_are_advised_are_taken() -> None:
    # 16 divides 48 and is nearer, but leaves 3
    assert "even head_dim: num_attention_heads=12" in message_of(num_attention_heads=15)
    for hidden, heads, kv_heads in itertools.product(range(1, 70), range(1, 10), range(1, 6)):
        sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        if hidden % heads == 0 and (heads % kv_heads or hidden // heads % 2 == 0):
            continue
        ways = re.search(r"even head_dim: (.*) \[type", message_of(**sizes))
        assert ways is not None, sizes
        for way in ways[1].split(" or "):
            advised = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", way)}
            assert SmolLM2Config.model_validate({**SIZES, **sizes, **advised}).head_dim % 2 == 0


def test_an_odd_hidden_size_has_no_even_heads() -> None:
    assert (
        "head_dim = hidden_size / num_attention_heads = 15 is odd, and rotary embeddings turn pairs; "
        "nearest with an even head_dim: hidden_size=48"
    ) in message_of(hidden_size=45, num_attention_heads=3, num_key_value_heads=3)


def test_key_value_heads_that_do_not_divide_name_the_nearest() -> None:
    assert "num_key_value_heads=4 does not divide num_attention_heads=6; the nearest that does is 3" in message_of(
        num_key_value_heads=4
    )


def test_odd_head_dim_is_refused() -> None:
    assert (
        "head_dim = hidden_size / num_attention_heads = 3 is odd, and rotary embeddings turn pairs; "
        "nearest with an even head_dim: num_attention_heads=12 or hidden_size=64"
    ) in message_of(num_attention_heads=16)


def test_end_of_sequence_must_be_in_the_vocabulary() -> None:
    assert "eos_token_id=100 is not below vocab_size=100" in message_of(eos_token_id=100)


def test_vocabulary_must_fit_16_bits() -> None:
    assert "less than or equal to 65536" in message_of(vocab_size=65_537)


def test_no_key_value_heads_means_full_attention() -> None:
    config = SmolLM2Config.model_validate({**SIZES, "num_key_value_heads": None})
    assert config.num_key_value_heads == 6
    assert config.head_dim == 8


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "initializer_range"])
def test_numbers_without_end_are_refused(name: str) -> None:
    assert "Input should be a finite number" in message_of(**{name: float("inf")})
