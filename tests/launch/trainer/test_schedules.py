"""Every schedule by numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from launch.trainer.schedules import SCHEDULES, cosine, linear, wsd


def test_wsd_decay_is_half_at_midpoint():
    assert wsd(step=90, total_steps=100, decay_steps=20) == 0.5


def test_wsd_holds_the_peak_until_the_decay_begins():
    assert [wsd(step=step, total_steps=100, decay_steps=20) for step in (0, 50, 79, 80)] == [1, 1, 1, 1]
    assert wsd(step=81, total_steps=100, decay_steps=20) == 19 / 20


def test_wsd_without_decay_is_constant_to_the_end():
    assert [wsd(step=step, total_steps=10) for step in (0, 9)] == [1, 1]


def test_wsd_last_update_is_one_part_of_the_decay():
    assert wsd(step=99, total_steps=100, decay_steps=20) == 1 / 20


def test_cosine_is_half_at_midpoint_and_a_quarter_of_the_way_at_two_thirds():
    assert cosine(step=50, total_steps=100) == pytest.approx(0.5)
    # cos(2π/3) = -1/2
    assert cosine(step=60, total_steps=90) == pytest.approx(0.25)


def test_cosine_decays_from_the_end_of_the_warmup():
    assert cosine(step=10, total_steps=110, warmup_steps=10) == 1
    assert cosine(step=60, total_steps=110, warmup_steps=10) == pytest.approx(0.5)


def test_linear_decays_from_the_end_of_the_warmup():
    assert linear(step=10, total_steps=110, warmup_steps=10) == 1
    assert linear(step=35, total_steps=110, warmup_steps=10) == 0.75


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_to_the_peak_without_an_update_at_zero(name):
    schedule = SCHEDULES[name]
    factors = [schedule(step=step, total_steps=1000, warmup_steps=4, decay_steps=100) for step in range(4)]
    assert factors == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_smallest_factor_is_reached_at_the_end_and_kept(name):
    schedule = SCHEDULES[name]
    for step in (100, 101, 10_000):
        assert schedule(step=step, total_steps=100, decay_steps=20, min_factor=0.1) == pytest.approx(0.1)
    # half way down in share: 0.1 + 0.9 / 2
    middle = {"wsd": 90, "cosine": 50, "linear": 50}[name]
    assert schedule(step=middle, total_steps=100, decay_steps=20, min_factor=0.1) == pytest.approx(0.55)


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_stay_between_zero_and_one_and_never_rise_after_the_warmup(name):
    factors = [SCHEDULES[name](step=step, total_steps=200, warmup_steps=20, decay_steps=40) for step in range(220)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[19:]))
    assert all(factor > 0 for factor in factors[:200])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_of_one_step_trains_at_the_peak(name):
    assert SCHEDULES[name](step=0, total_steps=1, warmup_steps=0, decay_steps=0) == 1


def test_warmup_into_an_immediate_decay_never_exceeds_either():
    # warmup and decay overlap nowhere: 2 + 2 of 4 steps
    factors = [wsd(step=step, total_steps=4, warmup_steps=2, decay_steps=2) for step in range(5)]
    assert factors == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert math.isclose(max(factors), 1.0)
