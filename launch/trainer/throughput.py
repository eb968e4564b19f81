"""Tokens a second and model FLOPs utilisation (MFU), by one definition.

MFU is tokens a second × training FLOPs a token / (devices × peak FLOP/s of one), as in PaLM (Chowdhery et al.,
arXiv:2204.02311, appendix B). The FLOPs a token are 6·N + 12·layers·hidden·sequence with N counting a tied embedding
once, attention not halved for causality, and recomputed activations not counted (`model.cost`). The peak is the
maker's figure for dense bf16 with fp32 accumulation. Makers print the figure for 2:4 sparsity, which is twice that:
dividing by it would make a run look half as good, and by a guess, anything. A device that is not in the table has no
MFU; neither has a CPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense bf16 FLOP/s of the devices whose whole name, as CUDA or ROCm reports it, matches a pattern."""

    name_pattern: str
    flops: float
    source: str


# A slice of a device (MIG) has a longer name and so matches none.
PEAKS = (
    Peak(r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe", 312e12, "NVIDIA A100 datasheet, 2021"),
    Peak(r"NVIDIA H100 80GB HBM3", 989.4e12, "NVIDIA H100 architecture white paper, SXM5"),
    Peak(r"NVIDIA H100 PCIe", 756e12, "NVIDIA H100 architecture white paper, PCIe"),
    Peak(r"NVIDIA H100 NVL", 835.5e12, "NVIDIA H100 datasheet, NVL: 1,671e12 with sparsity"),
    Peak(r"NVIDIA H200", 989.5e12, "NVIDIA H200 datasheet, SXM: 1,979e12 with sparsity"),
    Peak(r"NVIDIA H200 NVL", 835.5e12, "NVIDIA H200 datasheet, NVL: 1,671e12 with sparsity"),
    Peak(r"NVIDIA GH200 480GB", 989.5e12, "NVIDIA GH200 datasheet: 1,979e12 with sparsity"),
    Peak(r"NVIDIA B200", 2250e12, "NVIDIA HGX B200 datasheet: 36e15 with sparsity on 8 devices"),
    Peak(r"NVIDIA L40S", 362.05e12, "NVIDIA L40S datasheet"),
    Peak(r"NVIDIA L4", 121e12, "NVIDIA L4 datasheet: 242e12 with sparsity"),
    Peak(r"NVIDIA A40", 149.7e12, "NVIDIA A40 datasheet"),
    Peak(r"NVIDIA GeForce RTX 4090", 165.2e12, "NVIDIA Ada architecture white paper, bf16 with fp32 accumulation"),
    Peak(r"NVIDIA GeForce RTX 3090", 71e12, "NVIDIA GA102 architecture white paper, bf16 with fp32 accumulation"),
    Peak(r"AMD Instinct MI300X( OAM)?", 1307.4e12, "AMD Instinct MI300X data sheet"),
)  # fmt: skip


@dataclass(frozen=True)
class Throughput:
    """What turns a rate of tokens into utilisation; `flops_per_token` is of training, forward and backward."""

    flops_per_token: float
    device_name: str  # as torch.cuda.get_device_name gives it
    world_size: int

    def mfu(self, tokens_per_second: float) -> float | None:
        """Achieved FLOP/s of all ranks together over their devices' peak; None where the peak is not known."""
        peak = peak_flops(self.device_name)
        return None if peak is None else tokens_per_second * self.flops_per_token / (peak * self.world_size)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of one device; None if it is not in the table."""
    for peak in PEAKS:
        if re.fullmatch(peak.name_pattern, device_name.strip()):
            return peak.flops
    return None
