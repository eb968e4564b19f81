"""A loss or a gradient that is no number ends the run with one line."""

from __future__ import annotations

import math

import pytest

from launch.trainer.guards import DivergedError, check_grad_norm, check_loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_stops(value: float) -> None:
    with pytest.raises(DivergedError, match=rf"step 7: the loss is {value}.*checkpoint of step 5"):
        check_loss(value, step=7, last_checkpoint=5)


def test_gradient_that_is_no_number_stops_and_says_that_there_is_no_checkpoint() -> None:
    with pytest.raises(DivergedError, match=r"gradient norm is inf.*it goes on from the start"):
        check_grad_norm(math.inf, step=2, last_checkpoint=None)


def test_numbers_pass() -> None:
    check_loss(11.0, step=1, last_checkpoint=None)
    check_grad_norm(1e9, step=1, last_checkpoint=None)
