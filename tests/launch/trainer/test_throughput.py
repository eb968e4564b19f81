"""Rates worked by hand, and peaks only for devices that are known."""

from __future__ import annotations

import pytest

from launch.trainer.throughput import PEAKS, Throughput, peak_flops


def test_mfu_worked_by_hand():
    # 100,000 tokens/s · 1e9 FLOPs = 1e14 FLOP/s, of 2 · 312e12
    throughput = Throughput(flops_per_token=1e9, device_name="NVIDIA A100-SXM4-80GB", world_size=2)
    assert throughput.mfu(100_000) == pytest.approx(100 / 624)


def test_a_device_without_a_peak_has_no_mfu():
    assert Throughput(flops_per_token=1e9, device_name="cpu", world_size=2).mfu(100_000) is None


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
