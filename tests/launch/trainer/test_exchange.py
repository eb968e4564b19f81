"""What ranks tell each other at the end of a step: by hand, and through a real process group of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.trainer.exchange import RankReport, StepReports, exchange


def test_means_and_sums_over_ranks() -> None:
    reports = StepReports((RankReport(3.0, 2.0, 9.0, 0.5, (1.0, 0.0)), RankReport(5.0, 4.0, 16.0, 0.7, (1.0, 1.0))))
    assert (reports.loss, reports.cross_entropy) == (4.0, 3.0)
    # the shares of a gradient of norm 5
    assert reports.gradient_norm == 5.0
    assert reports.stop_flags == [2.0, 1.0]
    assert (reports.losses, reports.own_times_s) == ([3.0, 5.0], [0.5, 0.7])


def test_every_number_comes_back_where_it_belongs(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        losses, square = torch.tensor([1.5, 1.25], dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)
        reports = exchange(losses, square, own_time_s=0.125, stop_flags=[0.0, 1.0, 0.0], world_size=1)
    finally:
        torch.distributed.destroy_process_group()
    assert reports.ranks == (RankReport(1.5, 1.25, 4.0, 0.125, (0.0, 1.0, 0.0)),)
    assert reports.gradient_norm == pytest.approx(2.0)
