"""Which rank is slow, by hand-computed means."""

from __future__ import annotations

import pytest

from launch.supervision_config import WatchdogConfig
from launch.trainer.stragglers import Straggler, StragglerWatch

CONFIG = WatchdogConfig(straggler_ratio=1.5, straggler_steps=4)


def test_slowest_over_the_ratio_is_named_at_the_end_of_a_window() -> None:
    watch = StragglerWatch(CONFIG, world_size=3)
    found = [watch.look([1.0, 2.0, 1.0]) for _ in range(8)]
    assert found == [None, None, None, Straggler(1, 2.0)] * 2
    assert found[3] is not None
    assert found[3].text == "rank 1 is slow: its own work takes 2.0 times as long as the median rank's"


def test_ratio_itself_is_borne() -> None:
    watch = StragglerWatch(CONFIG, world_size=2)
    assert [watch.look([1.5, 1.0]) for _ in range(4)] == [None] * 4


def test_of_two_ranks_the_faster_one_is_the_measure() -> None:
    watch = StragglerWatch(CONFIG, world_size=2)
    assert [watch.look([1.0, 1.6]) for _ in range(4)][3] == Straggler(1, pytest.approx(1.6))


def test_one_slow_step_is_not_long() -> None:
    watch = StragglerWatch(CONFIG, world_size=2)
    # means 1.0 and (1 + 1 + 1 + 2.5) / 4 = 1.375
    assert [watch.look([1.0, other]) for other in (1.0, 1.0, 2.5, 1.0)] == [None] * 4


def test_ranks_without_a_clock_are_all_equal() -> None:
    watch = StragglerWatch(CONFIG, world_size=2)
    assert [watch.look([0.0, 0.0]) for _ in range(4)] == [None] * 4
