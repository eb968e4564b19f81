"""Rates worked by hand, and peaks only for devices that are known."""

from __future__ import annotations

import pytest

from launch.trainer.throughput import PEAKS, mfu, peak_flops, throughput


def test_mfu_worked_by_hand():
    # 100,000 tokens/s · 1e9 FLOPs = 1e14 FLOP/s, of 2 · 312e12
    a100 = "NVIDIA A100-SXM4-80GB"
    assert mfu(tokens_per_second=100_000, flops_per_token=1e9, device_name=a100, world_size=2) == pytest.approx(
        100 / 624
    )


def test_tokens_per_second_are_tokens_over_seconds():
    result = throughput(tokens=6_000, elapsed_s=2.0, flops_per_token=1e9, device_name="cpu", world_size=4)
    assert result.tokens_per_second == 3_000
    assert result.tokens_per_second_per_device == 750
    assert result.mfu is None


def test_throughput_carries_the_mfu():
    result = throughput(
        tokens=312, elapsed_s=1, flops_per_token=1e12, device_name="NVIDIA A100-PCIE-40GB", world_size=1
    )
    assert result.mfu == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peak_is_the_dense_figure(name, teraflops):
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA B300",
    ],
)
def test_a_device_that_is_not_known_has_no_peak(name):
    assert peak_flops(name) is None


def test_every_peak_names_its_source():
    assert all(peak.source for peak in PEAKS)
