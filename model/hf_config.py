"""Hugging Face's config.json for Llama-type models, read and written. No torch, no transformers.

Reads the spellings of transformers 4.x (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5.x (`rope_parameters`,
`dtype`), and writes both: with one of them alone the other version silently takes theta 10,000. What this model does
not compute is refused, because weights loaded into another computation give another model without an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import SmolLM2Config

CONFIG_FILE = "config.json"
# LlamaConfig's own defaults, for keys that a config.json may leave out.
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class WeightsError(ValueError):
    """A Hugging Face directory that cannot be read as SmolLM2. One line a problem, all problems at once."""


def huggingface_config(config: SmolLM2Config, *, dtype: str) -> dict[str, Any]:
    """The contents of config.json. `dtype` is the stored tensors': "bfloat16", "float16" or "float32"."""
    fields = config.model_dump()
    rope_theta = fields.pop("rope_theta")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **fields,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "rope_theta": rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def read_config(folder: Path) -> SmolLM2Config:
    """The architecture in the config.json of a folder. Raises WeightsError."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; wanted a Hugging Face model directory on this machine")
    file = folder / CONFIG_FILE
    tree = read_json(file, missing=f"{folder}: has no {CONFIG_FILE}; wanted a Hugging Face model directory")
    return read_huggingface_config(tree, origin=str(file))


def read_json(file: Path, *, missing: str) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightsError, of a file that is not there with the words of `missing`."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(missing) from None
    except ValueError as error:
        raise WeightsError(f"{file}: not JSON: {error}; fetch the file again") from None
    if not isinstance(tree, dict):
        raise WeightsError(f"{file}: wanted a JSON object, got {type(tree).__name__}")
    return tree


def read_huggingface_config(tree: dict[str, Any], *, origin: str) -> SmolLM2Config:
    """The architecture in a config.json. `origin` is its path, for messages.

    Of several end-of-sequence ids the first is kept. Raises WeightsError for what is missing, invalid or not computed.
    """
    problems = list(_not_computed(tree))
    problems += [f"{key} is missing" for key in _REQUIRED if tree.get(key) is None]
    if problems:
        raise WeightsError("\n".join(f"{origin}: {problem}" for problem in problems))
    fields = {key: tree[key] for key in _REQUIRED}
    for key, default in _DEFAULTS.items():
        fields[key] = default if tree.get(key) is None else tree[key]
    if isinstance(fields["eos_token_id"], list) and fields["eos_token_id"]:
        fields["eos_token_id"] = fields["eos_token_id"][0]
    try:
        return SmolLM2Config(rope_theta=_rope_theta(tree), **fields)
    except ValidationError as error:
        lines = (_one_line(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
        raise WeightsError("\n".join(f"{origin}: {line}" for line in lines)) from None


def _not_computed(tree: dict[str, Any]) -> Iterator[str]:
    architectures = tree.get("architectures") or ["LlamaForCausalLM"]
    if tree.get("model_type", "llama") != "llama" or architectures != ["LlamaForCausalLM"]:
        yield (
            f"architectures={architectures} of model_type={tree.get('model_type')!r}; "
            "wanted LlamaForCausalLM of model_type 'llama'"
        )
    for key in ("attention_bias", "mlp_bias"):
        if tree.get(key):
            yield f"{key}=true; this model has no biases"
    if tree.get("hidden_act", "silu") != "silu":
        yield f"hidden_act={tree['hidden_act']!r}; this model computes silu only"
    if tree.get("sliding_window"):
        yield f"sliding_window={tree['sliding_window']}; this model attends to the whole document"
    if tree.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"partial_rotary_factor={tree['partial_rotary_factor']}; this model rotates whole heads"
    if tree.get("quantization_config"):
        yield "quantization_config is set; save the model dequantized first"
    for key in ("rope_scaling", "rope_parameters"):
        scaling = tree.get(key) or {}
        if not isinstance(scaling, dict):
            yield f"{key}={scaling!r}; wanted an object or null"
            continue
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            yield f"{key} of type {kind!r}; this model computes unscaled rotary embeddings only"
    sizes: list[Any] = [tree.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return  # left out, or for the schema to refuse
    hidden_size, heads, head_dim = sizes
    if head_dim * heads != hidden_size:
        yield f"head_dim={head_dim}; this model computes hidden_size / num_attention_heads, {hidden_size / heads:g}"


def _rope_theta(tree: dict[str, Any]) -> Any:
    """From transformers 5.x's place if it is there: 5.x reads it first too. 10,000 is LlamaConfig's default."""
    parameters = tree.get("rope_parameters") or {}
    theta = parameters.get("rope_theta", tree.get("rope_theta"))
    return 10_000.0 if theta is None else theta


def _one_line(field: str, message: str) -> str:
    reason = message.removeprefix("Value error, ")
    return f"{field}: {reason[0].lower()}{reason[1:]}" if field else reason
