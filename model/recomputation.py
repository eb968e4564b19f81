"""A decoder layer's forward pass under one of the modes of `activation_checkpointing.py`, compiled or not.

What is wrapped is a function and not the module: the hooks by which ZeRO-3 gathers a layer's parameters stay outside,
run once in a direction, and are invisible to the bookkeeping of `selective`, which counts operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.activation_checkpointing import ActivationCheckpointing, LayerMode

# (layer, hidden, what all layers share …) → hidden
Compute = Callable[..., Tensor]
# (function, inputs …) → its result, with the function computed again in the backward pass
CheckpointFunction = Callable[..., Tensor]

# Projections are mm and attention's own products bmm, or inside a fused kernel: eager's seq² scores are not kept.
_KEPT_PRODUCTS = ("aten.mm.default", "aten.addmm.default", "aten._scaled_mm.default")
_KEPT_ATTENTION = ("scaled_dot_product", "flash_", "varlen_attn", "flex_attention")


def layer_functions(
    compute: Compute,
    settings: ActivationCheckpointing,
    *,
    num_layers: int,
    compile_backend: str | None = None,
    deepspeed_checkpoint: CheckpointFunction | None = None,
) -> list[Compute]:
    """For each layer `compute`, with the same result and gradients, keeping what the layer's mode keeps.

    compile_backend: a backend of torch.compile, which then builds what all layers share once; None: not compiled.
    deepspeed_checkpoint: DeepSpeed's function, of mode `deepspeed`, which this room does not import.
    """
    compiled = compute if compile_backend is None else torch.compile(compute, backend=compile_backend)
    # nothing in a layer is random, so there is no generator state to keep
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    functions: dict[LayerMode, Compute] = {"none": compiled, "full": partial(_checkpointed, compiled, options)}
    if settings.mode == "deepspeed":
        assert deepspeed_checkpoint is not None, "mode=deepspeed wants DeepSpeed's checkpoint function"
        functions["deepspeed"] = partial(_checkpointed_by_deepspeed, deepspeed_checkpoint, compiled)
    elif settings.mode == "selective":
        # by operations, of which a compiled function has none: the compiler itself has to see the choice, and fullgraph
        # because a part that it could not trace would leave the whole layer uncompiled without a word
        keeping = {**options, "context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
        selective: Compute = partial(_checkpointed, compute, keeping)
        if compile_backend is not None:
            selective = torch.compile(selective, backend=compile_backend, fullgraph=True)
        functions["selective"] = selective
    return [functions[settings.layer_mode(index)] for index in range(num_layers)]


def _checkpointed(compute: Compute, options: dict[str, Any], *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return compute(*inputs)
    recomputed: Tensor = checkpoint(compute, *inputs, **options)
    return recomputed


def _checkpointed_by_deepspeed(
    deepspeed_checkpoint: CheckpointFunction, compute: Compute, layer: nn.Module, hidden: Tensor, *shared: Any
) -> Tensor:
    if not torch.is_grad_enabled():
        return compute(layer, hidden, *shared)

    # DeepSpeed empties the inputs that it has put aside, and the other layers still need what they share
    def compute_from_hidden(hidden: Tensor) -> Tensor:
        return compute(layer, hidden, *shared)

    return deepspeed_checkpoint(compute_from_hidden, hidden)


def _keep_products(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    # "aten.mm.default", "aten._scaled_dot_product_flash_attention.default", "flex_attention"
    name = str(operation)
    if name in _KEPT_PRODUCTS or (any(part in name for part in _KEPT_ATTENTION) and "backward" not in name):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
