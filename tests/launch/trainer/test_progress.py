"""The lines a person reads."""

from __future__ import annotations

import pytest

from launch.trainer.progress import duration, step_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (7.4, "7s"), (59.6, "1m 00s"), (125, "2m 05s"), (18_540, "5h 09m"), (183_600, "2d 03h")],
)
def test_duration_has_the_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def line(mfu: float | None) -> str:
    return step_line(
        step=20,
        steps=700,
        loss=8.12345,
        learning_rate=1.2e-3,
        grad_norm=1.434,
        tokens_per_second=21_562.7,
        mfu=mfu,
        seconds_left=125,
    )


def test_step_line_tells_all_with_units() -> None:
    assert line(0.4127) == (
        "step  20/700  loss 8.1235  lr 1.20e-03  grad norm 1.43  21,563 tokens/s  MFU 41.3%  2m 05s left"
    )


def test_unknown_utilisation_is_said_to_be_unknown() -> None:
    assert "MFU n/a" in line(None)
