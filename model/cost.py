"""What a model costs, from its config alone: parameters by part, FLOPs a token, bytes under ZeRO-3. No torch.

The bytes of activations are in `activation_cost.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.activation_checkpointing import ActivationCheckpointing, LayerMode
from model.config import SmolLM2Config
from model.parameters import parameter_shapes, row_of

# AdamW keeps both moments in fp32, beside an fp32 copy of the parameters, whatever the parameters are.
_PARAMETER_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part. A tied head is the embedding, counted once, so `head` is 0 then."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.norms + self.head


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the training states of all ranks together; ZeRO-3 gives every rank an equal share of each.

    Activations and the parameters gathered for the layer at work come on top.
    """

    parameters: int
    gradients: int
    master_parameters: int
    moments: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.master_parameters + self.moments


def count_parameters(config: SmolLM2Config) -> ParameterCount:
    """Sums of the shapes in `parameters.py`, part by part."""
    counts = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for name, shape in parameter_shapes(config).items():
        counts[row_of(name).part] += math.prod(shape)
    return ParameterCount(**counts)


def count_with_gate_and_up_as_one(config: SmolLM2Config) -> int:
    """The tally of documents that take SwiGLU's gate and up for one hidden × intermediate matrix.

    SwiGLU has three matrices a layer (arXiv:2002.05202, eq. 6), this tally two: it falls short of the total by
    layers × hidden × intermediate. The document behind smollm2-seed counts so and says 121,243,968.
    """
    return count_parameters(config).total - (config.num_hidden_layers * config.hidden_size * config.intermediate_size)


def flops_per_token(config: SmolLM2Config, *, sequence_length: int) -> int:
    """Forward and backward FLOPs: 6 · N + 12 · layers · hidden · sequence (PaLM, arXiv:2204.02311, appendix B).

    N counts the tied embedding once: it is the head's matrix product. Attention is not halved for causality, and
    activation checkpointing's second forward is not counted. The only definition of the MFU in this repository.
    """
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return 6 * count_parameters(config).total + attention


def true_flops_per_token(config: SmolLM2Config, *, document_lengths: Sequence[int]) -> float:
    """Forward and backward FLOPs of the products that a batch of these documents needs, and of no others.

    6 for each weight of a matrix that multiplies (norms do not, nor does the embedding's row) and 12 · layers · hidden
    for each pair of a token and one that it attends to: a document of n tokens has n · (n + 1) / 2 of them.
    """
    count = count_parameters(config)
    weights = count.attention + count.mlp + config.vocab_size * config.hidden_size
    pairs = sum(length * (length + 1) // 2 for length in document_lengths)
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * pairs / sum(document_lengths)


def recomputed_flops_per_token(
    config: SmolLM2Config,
    checkpointing: ActivationCheckpointing,
    *,
    sequence_length: int,
    eager_attention: bool,
    compiled: bool = False,
) -> int:
    """FLOPs that activation checkpointing adds, with attention counted as in `flops_per_token`.

    A layer is run again up to the last tensor that its backward wants, which is the input of down_proj: its product is
    left out. DeepSpeed's function runs all of it, and so does a layer that is `compiled`. `selective` has kept the
    products, and fused attention's.
    """
    count = count_parameters(config)
    attention = 4 * config.hidden_size * sequence_length
    layer = 2 * (count.attention + count.mlp) // config.num_hidden_layers + attention
    again: dict[LayerMode, int] = {
        "none": 0,
        "selective": attention * eager_attention,
        "full": layer if compiled else layer - 2 * config.hidden_size * config.intermediate_size,
        "deepspeed": layer,
    }
    return sum(again[checkpointing.layer_mode(index)] for index in range(config.num_hidden_layers))


def zero3_state_bytes(config: SmolLM2Config, *, dtype: Literal["bf16", "fp32"] = "bf16") -> StateBytes:
    """Parameters in `dtype`; gradients summed in fp32; AdamW's fp32 copy and two moments (arXiv:1910.02054, §3.1)."""
    total = count_parameters(config).total
    return StateBytes(
        parameters=_PARAMETER_BYTES[dtype] * total,
        gradients=4 * total,
        master_parameters=4 * total,
        moments=8 * total,
    )
