"""The curve's numbers by hand, and the picture as a file that is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from checkpoint.events import EventWriter, events_file
from checkpoint.loss_curve import Series, draw_loss_curve, read_series, smooth

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_smoothing_is_centred_and_narrows_at_the_ends() -> None:
    assert smooth([3.0, 6.0, 9.0, 12.0], span=3) == [4.5, 6.0, 9.0, 10.5]


def test_smoothing_over_one_changes_nothing() -> None:
    assert smooth([3.0, 1.0, 2.0], span=1) == [3.0, 1.0, 2.0]


def write_losses(run: Path, *pairs: tuple[int, float], key: str = "train/loss") -> None:
    with EventWriter(events_file(run)) as log:
        for step, loss in pairs:
            log.write("metrics", step=step, **{key: loss, "train/grad_norm": 1.0})


def test_series_hold_only_finite_values(tmp_path: Path) -> None:
    write_losses(tmp_path, (1, 9.0), (2, math.nan), (3, 7.0), (4, math.inf))
    assert read_series(tmp_path) == {"train/loss": Series([1, 3], [9.0, 7.0])}


def test_step_that_was_told_twice_is_as_told_last(tmp_path: Path) -> None:
    write_losses(tmp_path, (1, 9.0), (2, 8.0), (3, 70.0), (2, 7.5), (3, 6.5), (4, 6.0))
    assert read_series(tmp_path) == {"train/loss": Series([1, 2, 3, 4], [9.0, 7.5, 6.5, 6.0])}


def test_end_of_an_abandoned_attempt_is_left_out(tmp_path: Path) -> None:
    write_losses(tmp_path, (1, 9.0), (2, 8.0), (3, 70.0), (4, 80.0))
    write_losses(tmp_path, (4, 80.0), key="validation/loss")
    write_losses(tmp_path, (3, 7.0))
    assert read_series(tmp_path) == {"train/loss": Series([1, 2, 3], [9.0, 8.0, 7.0])}


def test_validation_of_a_step_leaves_its_training_loss(tmp_path: Path) -> None:
    write_losses(tmp_path, (1, 9.0))
    write_losses(tmp_path, (1, 9.5), key="validation/loss")
    assert read_series(tmp_path) == {"train/loss": Series([1], [9.0]), "validation/loss": Series([1], [9.5])}


def test_picture_is_a_png_beside_the_log(tmp_path: Path, write_log: Callable[..., None]) -> None:
    write_log(tmp_path, steps=120)
    assert draw_loss_curve(tmp_path) == tmp_path / "loss_curve.png"
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(PNG_SIGNATURE)
    assert [path.name for path in tmp_path.glob(".loss_curve*")] == []


def test_one_report_and_no_validation_is_enough(tmp_path: Path) -> None:
    with EventWriter(events_file(tmp_path)) as log:
        log.write("metrics", step=1, **{"train/loss": 9.0})
    assert draw_loss_curve(tmp_path) is not None


def test_run_without_a_loss_has_no_picture(tmp_path: Path) -> None:
    assert draw_loss_curve(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
