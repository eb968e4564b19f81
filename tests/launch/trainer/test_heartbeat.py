"""How long a rank may take, and what it writes of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.supervision_config import WatchdogConfig
from launch.trainer.heartbeat import Heartbeat, Sign, heartbeat_file, limit_s, read_sign, write_sign

CONFIG = WatchdogConfig(floor_s=10, factor=5, pause_s=100)


@pytest.mark.parametrize(("median_s", "limit"), [(None, 10), (1.0, 10), (2.0, 10), (3.0, 15)])
def test_step_may_take_a_multiple_of_the_median_and_never_less_than_the_floor(
    median_s: float | None, limit: float
) -> None:
    assert limit_s(CONFIG, median_step_s=median_s, is_pause=False) == limit


def test_pause_has_a_limit_of_its_own() -> None:
    assert limit_s(CONFIG, median_step_s=30.0, is_pause=True) == 100


def test_what_comes_before_the_end_of_the_first_step_is_a_pause() -> None:
    heartbeat = Heartbeat()
    assert heartbeat.seconds_over(CONFIG) == pytest.approx(-100, abs=1)
    heartbeat.step(1, is_warm_up=True)
    assert heartbeat.seconds_over(CONFIG) == pytest.approx(-100, abs=1)
    heartbeat.end_step()
    heartbeat.step(2, is_warm_up=False)
    assert heartbeat.seconds_over(CONFIG) == pytest.approx(-10, abs=1)


def test_evaluation_is_a_pause_and_ends() -> None:
    heartbeat = Heartbeat()
    heartbeat.step(2, is_warm_up=False)
    with heartbeat.pause("evaluate"):
        assert heartbeat.phase_name == "evaluate"
        assert heartbeat.seconds_over(CONFIG) == pytest.approx(-100, abs=1)
    assert heartbeat.seconds_over(CONFIG) == pytest.approx(-10, abs=1)


def test_limit_follows_the_median_of_the_steps_but_the_first() -> None:
    heartbeat, config = Heartbeat(), WatchdogConfig(floor_s=0.1, factor=10, pause_s=100)
    heartbeat.step(1, is_warm_up=True)
    time.sleep(0.3)
    heartbeat.end_step()
    for number in range(2, 7):
        heartbeat.step(number, is_warm_up=False)
        time.sleep(0.02)
        heartbeat.end_step()
    # a busy machine sleeps longer than 0.02 s, but the first step's 0.3 s would make it 3
    assert -2.5 < heartbeat.seconds_over(config) < -0.1


def test_time_in_which_the_process_could_not_run_is_forgiven() -> None:
    heartbeat = Heartbeat()
    heartbeat.step(2, is_warm_up=False)
    heartbeat.forgive(50)
    assert heartbeat.seconds_over(CONFIG) == pytest.approx(-60, abs=1)


def test_every_phase_is_a_beat() -> None:
    heartbeat = Heartbeat()
    before = heartbeat.beats
    heartbeat.phase("forward")
    heartbeat.phase("backward")
    assert heartbeat.beats == before + 2


def test_sign_is_read_back_and_what_is_no_sign_is_none(tmp_path: Path) -> None:
    sign = Sign(rank=3, host="a", pid=1, written=2, beats=5, step=7, phase="forward")
    assert read_sign(tmp_path, 3) is None
    write_sign(tmp_path, sign)
    assert read_sign(tmp_path, 3) == sign
    heartbeat_file(tmp_path, 3).write_text('{"rank": 3')
    assert read_sign(tmp_path, 3) is None


def test_part_of_a_step_that_was_reached_is_progress_however_long_the_step() -> None:
    heartbeat, config = Heartbeat(), WatchdogConfig(floor_s=0.5, factor=1, pause_s=100)
    heartbeat.step(2, is_warm_up=False)
    for _ in range(4):
        time.sleep(0.2)
        heartbeat.phase("forward")
    assert heartbeat.seconds_over(config) < 0
    time.sleep(0.6)
    assert heartbeat.seconds_over(config) > 0
