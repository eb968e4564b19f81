"""The one table of attention kernels, by the names of transformers, and where each of them runs.

Adding a kernel: write the file of its name with `bind(documents, *, dtype, head_dim) -> Attend`, and add its line to
`KERNELS`. A kernel that needs a package says so in its file, as PACKAGE (the name that pip knows) and INSTALL (the
command); the package is imported by `bind`, so never for a kernel that nobody chose.

Only `auto` chooses; a kernel asked for by name runs or is an error, it is never replaced by another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

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


@cache
def untraced(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The kernel as a call that torch.compile leaves alone, the same object each time."""
    # not as a decorator: it imports torch's compiler, over a second for those who compile nothing
    disable: Callable[..., Callable[..., Tensor]] = torch.compiler.disable
    return disable(kernel)


@dataclass(frozen=True)
class Kernel:
    """A line of the table: where a kernel runs. What a line leaves out has no limit."""

    device_types: tuple[str, ...] = ("cpu", "cuda")
    device_types_with_backward: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] | None = None
    min_head_dim_on_cuda: int = 1
    head_dim_multiple: int = 1
    # by the major number of the GPU's compute capability: 8 Ampere and Ada, 9 Hopper, 10 to 12 Blackwell
    max_head_dim: Mapping[int, int] | None = None
    # ROCm's GPUs are of type cuda too, and MI300's capability reads as Hopper's
    needs_nvidia: bool = False
    # whether torch.compile follows it; if not, a compiled layer is built in the parts around it
    is_traced: bool = True
    instead: str = "sdpa"


KERNELS = {
    "eager": Kernel(),
    "sdpa": Kernel(),
    "flex_attention": Kernel(
        device_types_with_backward=("cuda",),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        min_head_dim_on_cuda=16,
    ),
    "flash_attention_2": Kernel(
        device_types=("cuda",),
        dtypes=HALF_PRECISION,
        head_dim_multiple=8,
        max_head_dim={8: 256, 9: 256, 10: 256, 11: 256, 12: 256},
    ),
    "flash_attention_3": Kernel(
        device_types=("cuda",),
        dtypes=HALF_PRECISION,
        head_dim_multiple=8,
        max_head_dim={9: 256},
        needs_nvidia=True,
        is_traced=False,
        instead="flash_attention_2 or sdpa",
    ),
    "flash_attention_4": Kernel(
        device_types=("cuda",),
        dtypes=HALF_PRECISION,
        head_dim_multiple=8,
        # on Blackwell the package also takes 256 alone, and 192 only for values of 128
        max_head_dim={9: 256, 10: 128, 11: 128},
        needs_nvidia=True,
        is_traced=False,
        instead="flash_attention_2 or sdpa",
    ),
}
NAMES = ("auto", *KERNELS)
# where several could run, `auto` takes the first. 3 and 4 are betas: by name only
AUTO_ORDER = ("flash_attention_2", "sdpa")


def check_name(name: str) -> None:
    """Raises AttentionBackendError for a name that is unknown or lacks its package."""
    if name not in NAMES:
        raise AttentionBackendError(f"attn_implementation={name!r} is unknown; take one of {', '.join(NAMES)}")
    if name != "auto" and (problem := _missing_package(name)):
        raise AttentionBackendError(f"attn_implementation={name} {problem}")


def resolve(name: str, *, device_type: str, dtype: torch.dtype, head_dim: int) -> str:
    """The kernel that `name` means for tensors of this device, dtype and head size: never `auto`. Log what it says.

    `auto` is the first of AUTO_ORDER that runs there: flash_attention_2 on a GPU in half precision where its package
    is installed, otherwise sdpa.
    Raises AttentionBackendError for a kernel that cannot run there, or whose gradients cannot while they are enabled.
    """
    if name == "auto":
        return next(
            candidate
            for candidate in AUTO_ORDER
            if not misfit(candidate, device_type=device_type, dtype=dtype, head_dim=head_dim)
            and not _missing_package(candidate)
        )
    if name in KERNELS and (problem := misfit(name, device_type=device_type, dtype=dtype, head_dim=head_dim)):
        raise AttentionBackendError(problem)
    check_name(name)
    return name


def bind(name: str, documents: Documents, *, dtype: torch.dtype, head_dim: int) -> Attend:
    """The kernel prepared for one batch: what all layers share (mask, offsets) is computed here, once."""
    kernel = resolve(name, device_type=documents.device.type, dtype=dtype, head_dim=head_dim)
    attend: Attend = _module(kernel).bind(documents, dtype=dtype, head_dim=head_dim)
    return attend


def misfit(
    name: str,
    *,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None = None,
    is_rocm: bool | None = None,
) -> str | None:
    """What of a kernel's line does not hold, as one line with what to take; None if it runs there.

    `capability` and `is_rocm` are those of another machine's GPU; left out, this one is asked.
    """
    problem = _misfit(KERNELS[name], device_type, dtype, head_dim, capability=capability, is_rocm=is_rocm)
    return f"attn_implementation={name} {problem}; take {KERNELS[name].instead}" if problem else None


def _misfit(
    kernel: Kernel,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    capability: tuple[int, int] | None,
    is_rocm: bool | None,
) -> str | None:
    """As the middle of a sentence."""
    if device_type not in kernel.device_types:
        return f"needs a device of type {' or '.join(kernel.device_types)}, got {device_type}"
    if kernel.needs_nvidia and (torch.version.hip is not None if is_rocm is None else is_rocm):
        return "needs a GPU of NVIDIA's, got one of AMD's (ROCm)"
    if torch.is_grad_enabled() and device_type not in kernel.device_types_with_backward:
        return f"has no backward on {device_type}"
    if kernel.dtypes is not None and dtype not in kernel.dtypes:
        return f"needs {' or '.join(map(_name_of, kernel.dtypes))}, got {_name_of(dtype)}"
    if head_dim % kernel.head_dim_multiple:
        return f"needs a head_dim that is a multiple of {kernel.head_dim_multiple}, got {head_dim}"
    if device_type == "cuda" and head_dim < kernel.min_head_dim_on_cuda:
        return f"needs a head_dim of at least {kernel.min_head_dim_on_cuda} on cuda, got {head_dim}"
    if device_type == "cuda" and kernel.max_head_dim is not None:
        major, minor = capability or torch.cuda.get_device_capability()
        if major not in kernel.max_head_dim:
            majors = " or ".join(f"{supported}.x" for supported in kernel.max_head_dim)
            return f"needs a GPU of compute capability {majors}, got {major}.{minor}"
        if head_dim > kernel.max_head_dim[major]:
            limit = kernel.max_head_dim[major]
            return f"needs a head_dim of at most {limit} on compute capability {major}.{minor}, got {head_dim}"
    return None


def _missing_package(name: str) -> str | None:
    module = _module(name)
    package: str | None = getattr(module, "PACKAGE", None)
    if package is None or is_installed(package):
        return None
    return (
        f"needs the package {package}, which is not installed; install it with `{module.INSTALL}`, "
        f"or take {KERNELS[name].instead}"
    )


@cache
def is_installed(package: str) -> bool:
    """Whether pip knows it. By package rather than by module: two packages of FlashAttention share a module's name."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"model.attention_backends.{name}")


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
