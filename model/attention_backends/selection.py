"""The one table of attention kernels, by the names of transformers, and what each needs in order to run.

Adding a kernel: write its file with a `bind(documents)` that returns an `Attend`, and add one line to `KERNELS`.
Only `auto` chooses; a kernel asked for by name runs or is an error, it is never replaced by another.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from model.documents import Documents

HALF_PRECISION = (torch.bfloat16, torch.float16)


class AttentionBackendError(ValueError):
    """A kernel that cannot run here, or that does not exist. The message names what is missing and what to take."""


@dataclass(frozen=True)
class Attend:
    """A kernel with what it needs of one batch: causal attention within documents, scaled by head_dim^-1/2.

    Called with query [batch, seq, heads, head_dim] and key, value [batch, seq, kv_heads, head_dim], it returns the
    shape of query; query heads share key/value heads in groups of heads / kv_heads.

    `kernel` is the same function from step to step and `arguments` holds what changes with the batch. A closure made
    anew at each step would make torch.compile build each layer anew as well.
    """

    kernel: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.kernel(query, key, value, *self.arguments)


@dataclass(frozen=True)
class Kernel:
    """A line of the table. `module` is imported when the kernel is first used; None: not written yet."""

    module: str | None
    package: str | None = None
    needs_cuda_half_precision: bool = False


KERNELS = {
    "eager": Kernel("model.attention_backends.eager"),
    "sdpa": Kernel("model.attention_backends.sdpa"),
    "flash_attention_2": Kernel("model.attention_backends.flash_attention_2", "flash_attn", True),
    "flash_attention_3": Kernel(None),
    "flash_attention_4": Kernel(None),
    "flex_attention": Kernel(None),
}
NAMES = ("auto", *KERNELS)


def check_name(name: str) -> None:
    """Raises AttentionBackendError for a name that is unknown, not implemented, or lacks its package."""
    if name == "auto":
        return
    if name not in KERNELS:
        raise AttentionBackendError(f"attn_implementation={name!r} is unknown; take one of {', '.join(NAMES)}")
    kernel = KERNELS[name]
    if kernel.module is None:
        raise AttentionBackendError(f"attn_implementation={name} is not implemented; take flash_attention_2 or sdpa")
    if kernel.package is not None and importlib.util.find_spec(kernel.package) is None:
        raise AttentionBackendError(
            f"attn_implementation={name} needs the Python package {kernel.package}, which is not installed; "
            "install the extra `gpu`, or take sdpa"
        )


def resolve(name: str, *, device_type: str, dtype: torch.dtype) -> str:
    """The kernel that `name` means for tensors of this device and dtype: never `auto`. Log what it says.

    `auto` is flash_attention_2 on CUDA in half precision where its package is installed, otherwise sdpa.
    Raises AttentionBackendError for a kernel that cannot run there.
    """
    check_name(name)
    can_flash = device_type == "cuda" and dtype in HALF_PRECISION
    if name == "auto":
        return "flash_attention_2" if can_flash and importlib.util.find_spec("flash_attn") is not None else "sdpa"
    if KERNELS[name].needs_cuda_half_precision and not can_flash:
        raise AttentionBackendError(
            f"attn_implementation={name} needs bfloat16 on a CUDA device, got {str(dtype).removeprefix('torch.')} "
            f"on {device_type}; take sdpa"
        )
    return name


def bind(name: str, documents: Documents, *, dtype: torch.dtype) -> Attend:
    """The kernel prepared for one batch: what all layers share (mask, offsets) is computed here, once."""
    kernel = KERNELS[resolve(name, device_type=documents.device.type, dtype=dtype)]
    assert kernel.module is not None
    bind_kernel = cast(Callable[[Documents], Attend], importlib.import_module(kernel.module).bind)
    return bind_kernel(documents)
