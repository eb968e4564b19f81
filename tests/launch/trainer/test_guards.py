"""What is not finite, how often, and what is a spike: by hand-computed numbers."""

from __future__ import annotations

import math

import pytest

from launch.supervision_config import SpikeConfig
from launch.trainer.guards import DivergedError, NotFinite, SkippedSteps, Spike, SpikeDetector, find_not_finite

EIGHT = [2.0, 2.1, 1.9, 2.2, 1.8, 2.0, 2.1, 1.9]  # median 2.0, deviations 0 .1 .1 .2 .2 0 .1 .1: their median is 0.1


def test_numbers_are_finite() -> None:
    assert find_not_finite([11.0, 1e9], 1e9) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_ranks_whose_loss_is_no_number_are_named(value: float) -> None:
    assert find_not_finite([1.0, value, 1.0, value], math.nan) == NotFinite(
        f"the loss is {value} on ranks 1, 3", (1, 3)
    )


def test_gradient_alone_is_nobodys() -> None:
    assert find_not_finite([1.0, 2.0], math.inf) == NotFinite("the gradient norm is inf", ())


def test_run_ends_with_the_step_that_is_one_too_many_in_a_row() -> None:
    skipped, found = SkippedSteps(3), NotFinite("the loss is nan on rank 1", (1,))
    for step in (4, 5):
        skipped.left_out(found, step=step, suspects="documents web/1", last_checkpoint=2)
    with pytest.raises(
        DivergedError,
        match=r"step 6: the loss is nan on rank 1, so the step was not taken, number 3 in a row; the run "
        r"stopped\. Lower optimizer.*look at the data \(documents web/1\), and run again: it goes on from the "
        r"checkpoint of step 2",
    ):
        skipped.left_out(found, step=6, suspects="documents web/1", last_checkpoint=2)


def test_step_that_was_taken_begins_the_count_anew() -> None:
    skipped, found = SkippedSteps(2), NotFinite("the gradient norm is inf", ())
    for step in (1, 3, 5):
        skipped.left_out(found, step=step, suspects="", last_checkpoint=None)
        skipped.took_step()
    assert skipped.in_a_row == 0


def test_one_allowed_means_none_is_borne_and_says_where_it_goes_on() -> None:
    with pytest.raises(DivergedError, match=r"was not taken; the run stopped.*it goes on from the start"):
        SkippedSteps(1).left_out(NotFinite("it", ()), step=1, suspects="", last_checkpoint=None)


def detector(*, min_rise: float = 0.1, min_z: float = 4.0) -> SpikeDetector:
    """Its window of eight full."""
    found = SpikeDetector(SpikeConfig(window_steps=8, min_z=min_z, min_rise=min_rise))
    assert [found.look(loss) for loss in EIGHT] == [None] * 8
    return found


def test_spike_is_measured_in_robust_deviations() -> None:
    # 1.4826 * 0.1 is one deviation; 3.4826 is (3.4826 - 2) / 0.14826 = 10 of them above
    spike = detector().look(3.4826)
    assert spike is not None
    assert spike == Spike(3.4826, 2.0, pytest.approx(10.0))


def test_loss_at_the_threshold_is_no_spike() -> None:
    assert detector().look(2.0 + 4 * 0.1482) is None
    assert detector().look(2.0 + 4 * 0.1484) is not None


def test_small_rise_is_no_spike_however_still_the_loss_was() -> None:
    assert detector(min_rise=2.0).look(3.9) is None


def test_loss_that_never_moved_spikes_by_its_rise_alone() -> None:
    still = SpikeDetector(SpikeConfig(window_steps=8, min_rise=0.5))
    assert [still.look(1.0) for _ in range(8)] == [None] * 8
    assert still.look(1.5) is None
    assert still.look(1.6) == Spike(1.6, 1.0, math.inf)


def test_spike_is_told_once_until_the_loss_has_come_down() -> None:
    found = detector()
    assert [found.look(loss) is not None for loss in (5.0, 5.0, 2.0, 5.0)] == [True, False, False, True]


def test_nothing_is_a_spike_until_the_window_is_full() -> None:
    found = SpikeDetector(SpikeConfig(window_steps=8))
    assert [found.look(loss) for loss in [*EIGHT[:7], 100.0]] == [None] * 8


def test_fall_is_no_spike() -> None:
    assert detector().look(0.1) is None
