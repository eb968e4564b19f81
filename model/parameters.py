"""Every parameter of the model, declared once: its name here and at Hugging Face, its shape, its part, its init.

The module tree in `transformer.py` has exactly these parameters (a test compares them). Initialisation, the counts of
`cost.py` and the translation of `hf.py` read this table and know no names of their own. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from model.config import SmolLM2Config

Part = Literal["embedding", "attention", "mlp", "norms", "head"]
# Where a matrix stands decides its initial scale: what a projection writes into the residual stream adds up over
# 2 × num_hidden_layers branches, what it reads from it does not.
Role = Literal["input", "residual_output", "norm"]


@dataclass(frozen=True)
class ParameterRow:
    """One line of the table. `{layer}` in a name stands for every layer's index."""

    name: str
    huggingface_name: str
    shape: Callable[[SmolLM2Config], tuple[int, ...]]
    part: Part
    role: Role


def _hidden(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.hidden_size,)


def _vocabulary(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.vocab_size, config.hidden_size)


def _query(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.num_attention_heads * config.head_dim, config.hidden_size)


def _key_value(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.num_key_value_heads * config.head_dim, config.hidden_size)


def _attention_output(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.hidden_size, config.num_attention_heads * config.head_dim)


def _mlp_in(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.intermediate_size, config.hidden_size)


def _mlp_out(config: SmolLM2Config) -> tuple[int, ...]:
    return (config.hidden_size, config.intermediate_size)


def _in_layer(name: str, shape: Callable[[SmolLM2Config], tuple[int, ...]], part: Part, role: Role) -> ParameterRow:
    return ParameterRow(f"layers.{{layer}}.{name}", f"model.layers.{{layer}}.{name}", shape, part, role)


HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"

TABLE: tuple[ParameterRow, ...] = (
    ParameterRow(EMBEDDING, "model.embed_tokens.weight", _vocabulary, "embedding", "input"),
    _in_layer("input_layernorm.weight", _hidden, "norms", "norm"),
    _in_layer("self_attn.q_proj.weight", _query, "attention", "input"),
    _in_layer("self_attn.k_proj.weight", _key_value, "attention", "input"),
    _in_layer("self_attn.v_proj.weight", _key_value, "attention", "input"),
    _in_layer("self_attn.o_proj.weight", _attention_output, "attention", "residual_output"),
    _in_layer("post_attention_layernorm.weight", _hidden, "norms", "norm"),
    _in_layer("mlp.gate_proj.weight", _mlp_in, "mlp", "input"),
    _in_layer("mlp.up_proj.weight", _mlp_in, "mlp", "input"),
    _in_layer("mlp.down_proj.weight", _mlp_out, "mlp", "residual_output"),
    ParameterRow("norm.weight", "model.norm.weight", _hidden, "norms", "norm"),
    ParameterRow(HEAD, "lm_head.weight", _vocabulary, "head", "input"),
)

_LAYER_INDEX = re.compile(r"(?<=layers\.)\d+(?=\.)")
_ROWS = {row.name: row for row in TABLE}
_ROWS_BY_HUGGINGFACE_NAME = {row.huggingface_name: row for row in TABLE}


def parameter_shapes(config: SmolLM2Config) -> dict[str, tuple[int, ...]]:
    """Our name → shape, in the order of the model. A tied head is the embedding and is left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    in_layers = [row for row in TABLE if "{layer}" in row.name]
    for row in TABLE:
        if row is in_layers[0]:
            for layer in range(config.num_hidden_layers):
                shapes |= {inner.name.format(layer=layer): inner.shape(config) for inner in in_layers}
        elif row not in in_layers and not (row.name == HEAD and config.tie_word_embeddings):
            shapes[row.name] = row.shape(config)
    return shapes


def row_of(name: str) -> ParameterRow:
    """The table's line for one of our names. Raises KeyError for a name that is not a parameter of the model."""
    try:
        return _ROWS[_LAYER_INDEX.sub("{layer}", name)]
    except KeyError:
        raise KeyError(f"{name!r} is not a parameter of SmolLM2; the names are in model/parameters.py") from None


def to_huggingface_name(name: str) -> str:
    """`layers.3.mlp.up_proj.weight` → `model.layers.3.mlp.up_proj.weight`. Raises KeyError for an unknown name."""
    return _with_layer_of(name, row_of(name).huggingface_name)


def from_huggingface_name(name: str) -> str | None:
    """The reverse; None for a name that no parameter of ours has."""
    row = _ROWS_BY_HUGGINGFACE_NAME.get(_LAYER_INDEX.sub("{layer}", name))
    return None if row is None else _with_layer_of(name, row.name)


def _with_layer_of(name: str, pattern: str) -> str:
    layer = _LAYER_INDEX.search(name)
    return pattern.format(layer=layer.group()) if layer else pattern
