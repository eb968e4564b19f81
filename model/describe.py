"""The report of `smollm2 model describe`: the figures of `cost.py` as a table for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from model.config import SmolLM2Config
from model.cost import (
    count_parameters,
    count_with_gate_and_up_as_one,
    flops_per_token,
    true_flops_per_token,
    zero3_state_bytes,
)

WORLD_SIZES = (1, 8, 64)


def describe(config: SmolLM2Config, *, sequence_length: int, document_length: int | None = None) -> dict[str, Any]:
    """All figures by name; sizes in bytes, FLOPs a token for forward and backward.

    document_length: tokens of each document in a sequence, for the FLOPs that are needed; None: one document fills it.
    """
    document_length = document_length or sequence_length
    count = count_parameters(config)
    states = zero3_state_bytes(config, dtype="bf16")
    return {
        "config": config.model_dump(),
        "parameters": {**asdict(count), "total": count.total},
        "parameters_with_gate_and_up_as_one_matrix": count_with_gate_and_up_as_one(config),
        "sequence_length": sequence_length,
        "flops_per_token": flops_per_token(config, sequence_length=sequence_length),
        "document_length": document_length,
        "true_flops_per_token": true_flops_per_token(config, document_lengths=[document_length]),
        "zero3_state_bytes": {**asdict(states), "total": states.total},
    }


def format_table(config: SmolLM2Config, figures: dict[str, Any]) -> str:
    """The same figures for reading."""
    total = figures["parameters"]["total"]
    lines = [_architecture(config), "", "parameters"]
    for part, count in figures["parameters"].items():
        label = "head (the embedding's, tied)" if part == "head" and config.tie_word_embeddings else part
        lines.append(f"  {label:<32}{count:>15,}{count / total:>8.1%}")
    lines += ["", *_other_tally(config, figures), ""]
    lines.append(f"{'FLOPs a token, forward + backward':<34}{figures['flops_per_token']:>15,}")
    lines.append(f"  6 x parameters + 12 x layers x hidden x {figures['sequence_length']} positions")
    lines.append(f"{'  of them needed':<34}{figures['true_flops_per_token']:>15,.0f}")
    lines.append(f"  causal, within documents of {figures['document_length']} tokens, norms not counted")
    lines += ["", "ZeRO-3 states in bf16, all GPUs together"]
    for state, size_bytes in figures["zero3_state_bytes"].items():
        lines.append(f"  {state.replace('_', ' '):<32}{_size(size_bytes):>15}")
    shares = (
        f"{_size(figures['zero3_state_bytes']['total'] / world_size)} on {world_size}" for world_size in WORLD_SIZES
    )
    lines.append(f"  a GPU's share: {', '.join(shares)}; activations come on top")
    return "\n".join(lines)


def _architecture(config: SmolLM2Config) -> str:
    return (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, intermediate {config.intermediate_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim} over {config.num_key_value_heads} key/value heads, "
        f"vocabulary {config.vocab_size:,}, {'tied' if config.tie_word_embeddings else 'untied'} embeddings"
    )


def _other_tally(config: SmolLM2Config, figures: dict[str, Any]) -> list[str]:
    """Said for every model: whoever compares a total with a document's has to know which one it counts."""
    tally = figures["parameters_with_gate_and_up_as_one_matrix"]
    shape = f"{config.hidden_size} x {config.intermediate_size}"
    return [
        f"  {'gate and up counted as one matrix':<34}{tally:>13,}",
        "  Some documents count so, the one behind smollm2-seed among them. It parts from the total in mlp:",
        f"  three matrices a layer here, two there, {config.num_hidden_layers} x {shape} = "
        f"{figures['parameters']['total'] - tally:,} parameters fewer.",
    ]


def _size(size_bytes: int | float) -> str:
    if size_bytes >= 2**30 / 10:
        return f"{size_bytes / 2**30:,.2f} GiB"
    return f"{size_bytes / 2**20:,.1f} MiB" if size_bytes >= 2**20 / 10 else f"{size_bytes / 2**10:,.1f} KiB"
