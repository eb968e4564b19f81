"""The loss curve of a run as a PNG, drawn from its event log: losses above, learning rate below.

Where a resumed run repeats steps, the curve goes on from where the attempt resumed and leaves the abandoned end out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.events import (
    LEARNING_RATE,
    TRAIN_LOSS,
    VALIDATION_LOSS,
    events_file,
    read_events,
)
from checkpoint.manifest import CheckpointError
from checkpoint.run_record import read_run

CURVE_FILE = "loss_curve.png"

_TRAIN_COLOR, _VALIDATION_COLOR, _RATE_COLOR, _GRID_COLOR = "#9db8d2", "#d1495b", "#30638e", "#e6e6e6"
_SMOOTH_COLOR = "#30638e"
_MAX_POINTS = 4000  # more cannot be told apart in 1,600 pixels


@dataclass(frozen=True)
class Series:
    """Values of one metric by step, ascending."""

    steps: Sequence[int]
    values: Sequence[float]


def read_series(run: Path) -> Mapping[str, Series]:
    """The curve's metrics of a run, each step as it was told last; what is not finite is left out.

    A step that comes again takes back all that was told of it and later ones: the resumed run did not go on from them.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for event, _ in read_events(events_file(run)):
        if event.kind != "metrics":
            continue
        for key, pairs in points.items():
            while pairs and (pairs[-1][0] > event.step or (pairs[-1][0] == event.step and key in event.fields)):
                pairs.pop()
        for key in (TRAIN_LOSS, VALIDATION_LOSS, LEARNING_RATE):
            value = event.fields.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                points[key].append((event.step, value))
    return {
        key: Series([step for step, _ in pairs], [value for _, value in pairs])
        for key, pairs in points.items()
        if pairs
    }


def smooth(values: Sequence[float], *, span: int) -> list[float]:
    """Mean over `span` values around each, fewer at the ends, so that the line does not lag behind a falling loss.

    `smooth([3.0, 6.0, 9.0, 12.0], span=3) == [4.5, 6.0, 9.0, 10.5]`.
    """
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    index = np.arange(len(values))
    begin, end = np.maximum(index - span // 2, 0), np.minimum(index + span // 2 + 1, len(values))
    means: list[float] = ((sums[end] - sums[begin]) / (end - begin)).tolist()
    return means


def draw_loss_curve(run: Path) -> Path | None:
    """Write `RUN/loss_curve.png`, replacing it at once; None if the log holds no loss yet."""
    series = read_series(run)
    if TRAIN_LOSS not in series:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_losses(losses, series, title=_title(run))
    rate = series.get(LEARNING_RATE)
    if rate is not None:
        rates.plot(*_thin(rate), color=_RATE_COLOR, linewidth=1.4)
        rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    for axes in (losses, rates):
        axes.grid(color=_GRID_COLOR, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    temporary = run / f".{CURVE_FILE}.partial"
    figure.savefig(temporary, dpi=160, format="png")
    temporary.replace(run / CURVE_FILE)
    return run / CURVE_FILE


def _title(run: Path) -> str:
    try:
        return f"{read_run(run).name} ({run})"
    except CheckpointError:
        return str(run)


def _draw_losses(axes: Any, series: Mapping[str, Series], *, title: str) -> None:
    train = series[TRAIN_LOSS]
    axes.plot(*_thin(train), color=_TRAIN_COLOR, linewidth=0.8, label="training, each report")
    span = max(1, len(train.values) // 50)
    if span > 1:
        smoothed = Series(train.steps, smooth(train.values, span=span))
        axes.plot(*_thin(smoothed), color=_SMOOTH_COLOR, linewidth=2, label=f"training, smoothed over {span} reports")
    validation = series.get(VALIDATION_LOSS)
    if validation is not None:
        last = validation.values[-1]
        axes.plot(
            *_thin(validation),
            color=_VALIDATION_COLOR,
            linewidth=1.6,
            marker="o" if len(validation.steps) <= 60 else None,
            markersize=4.5,
            label=f"validation, last {last:.3f}",
        )
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False)


def _thin(series: Series) -> tuple[Sequence[int], Sequence[float]]:
    """Every n-th point and the last one, few enough to draw."""
    stride = max(1, len(series.steps) // _MAX_POINTS)
    if stride == 1:
        return series.steps, series.values
    return [*series.steps[::stride], series.steps[-1]], [*series.values[::stride], series.values[-1]]
