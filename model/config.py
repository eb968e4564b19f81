"""The architecture of a SmolLM2 as data, with field names spelled as in Hugging Face's LlamaConfig. No torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SmolLM2Config(BaseModel):
    """Shapes and constants of one model. Sizes are in elements.

    Raises pydantic's ValidationError, each message saying what, got, wanted and fix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocab_size: int = Field(ge=1, le=1 << 16)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    tie_word_embeddings: bool = True
    bos_token_id: int = Field(default=0, ge=0)
    eos_token_id: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _full_attention_by_default(cls, data: Any) -> Any:
        """A document that names no key/value heads means one for each query head."""
        if isinstance(data, dict) and data.get("num_key_value_heads") is None and "num_attention_heads" in data:
            return {**data, "num_key_value_heads": data["num_attention_heads"]}
        return data

    @model_validator(mode="after")
    def _heads_divide(self) -> SmolLM2Config:
        hidden, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if hidden % heads:
            raise ValueError(
                f"num_attention_heads={heads} does not divide hidden_size={hidden}; "
                f"{_sizes_that_fit(hidden, heads, kv_heads)}"
            )
        if heads % kv_heads:
            raise ValueError(
                f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}; "
                f"the nearest that does is {_nearest_divisor(heads, kv_heads)}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim = hidden_size / num_attention_heads = {self.head_dim} is odd, and rotary embeddings turn "
                f"pairs; {_sizes_that_fit(hidden, heads, kv_heads)}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not below vocab_size={self.vocab_size}; take the tokenizer's"
                )
        return self

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.num_attention_heads


def _sizes_that_fit(hidden: int, heads: int, kv_heads: int) -> str:
    """The nearest number of heads for this hidden size and the nearest hidden size for these heads: each leaves an even
    head_dim, and heads that the key/value heads divide."""
    shared_by = 1 if kv_heads == heads else kv_heads  # full attention is meant to stay full
    ways = []
    if hidden % (2 * shared_by) == 0:
        fitting = _nearest_divisor(hidden // (2 * shared_by), heads, times=shared_by)
        full = f" with num_key_value_heads={fitting}" if kv_heads == heads else ""
        ways.append(f"num_attention_heads={fitting}{full}")
    size = f"hidden_size={max(1, round(hidden / (2 * heads))) * 2 * heads}"
    if heads % kv_heads == 0:
        ways.append(size)
    elif not ways:
        ways.append(f"{size} with num_key_value_heads={_nearest_divisor(heads, kv_heads)}")
    return f"nearest with an even head_dim: {' or '.join(ways)}"


def _nearest_divisor(number: int, wanted: int, *, times: int = 1) -> int:
    """So many times one of the number's divisors."""
    candidates = [times * divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return min(candidates, key=lambda candidate: (abs(candidate - wanted), candidate))
