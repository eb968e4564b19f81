"""Accelerators that `smollm2 launch plan` knows, by the names that one types. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`name` as CUDA or ROCm reports it, for the table of `throughput.py`; `memory_bytes` by the maker; `capability`
    and `is_rocm` decide over attention kernels."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    is_rocm: bool = False


DEVICES = {
    "a100-40gb": Device("NVIDIA A100-SXM4-40GB", 40 * 2**30, (8, 0)),
    "a100": Device("NVIDIA A100-SXM4-80GB", 80 * 2**30, (8, 0)),
    "h100": Device("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0)),
    "h200": Device("NVIDIA H200", 141 * 10**9, (9, 0)),
    "b200": Device("NVIDIA B200", 180 * 10**9, (10, 0)),
    "l40s": Device("NVIDIA L40S", 48 * 10**9, (8, 9)),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 24 * 2**30, (8, 9)),
    "mi300x": Device("AMD Instinct MI300X", 192 * 10**9, (9, 4), is_rocm=True),
}
