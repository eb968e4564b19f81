"""A run's losses as a small inline SVG: the points are kept in `RUN/service/curve.json`, drawn at each request.

Reading a log of millions of steps takes seconds, so that a job of the service does it and a request does not. The file
may be deleted at any time. Colours are the page's, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoint.events import TRAIN_LOSS, VALIDATION_LOSS
from checkpoint.loss_curve import Series, read_series, smooth
from checkpoint.manifest import write_durably

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 44, 22, 8
_MAX_POINTS = 400
_GRID_LINES = 4

Points = tuple[tuple[int, float], ...]


class CurvePoints(BaseModel):
    """(step, loss in nats) of training, smoothed, and of validation, few enough to draw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Points = ()
    validation: Points = ()


def points_file(run: Path) -> Path:
    return run / "service" / "curve.json"


def write_points(run: Path) -> None:
    """Read the log and keep what `draw` needs."""
    series = read_series(run)
    points = CurvePoints(
        train=_thin(series.get(TRAIN_LOSS), is_noisy=True),
        validation=_thin(series.get(VALIDATION_LOSS), is_noisy=False),
    )
    points_file(run).parent.mkdir(exist_ok=True)
    write_durably(points_file(run), points.model_dump_json().encode())


def read_points(run: Path) -> CurvePoints:
    """No points where the file is missing or spoilt."""
    try:
        return CurvePoints.model_validate_json(points_file(run).read_bytes())
    except (OSError, ValidationError):
        return CurvePoints()


def draw(points: CurvePoints) -> Markup:
    """An SVG element; empty without a loss. Everything in it is a number."""
    everything = (*points.train, *points.validation)
    if not everything:
        return Markup("")
    steps, losses = [step for step, _ in everything], [loss for _, loss in everything]
    scale = _Scale(min(steps), max(steps), min(losses), max(losses))
    lines = [scale.grid_line(loss) for loss in scale.grid()]
    lines.append(f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{scale.first_step:,}</text>')
    lines.append(f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">step {scale.last_step:,}</text>')
    lines.append(f'<text class="train" x="{_WIDTH - 74}" y="{_TOP + 10}" text-anchor="end">training</text>')
    lines.append(f'<text class="validation" x="{_WIDTH}" y="{_TOP + 10}" text-anchor="end">validation</text>')
    lines.append(f'<polyline class="train" points="{scale.path(points.train)}"/>')
    lines.append(f'<polyline class="validation" points="{scale.path(points.validation)}"/>')
    label = f"loss from {losses[0]:.3f} to {(points.train or points.validation)[-1][1]:.3f} nats"
    # all of it was made above, from numbers
    return Markup(
        f'<svg class="curve" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(lines)}</svg>'
    )


class _Scale:
    """From (step, loss) to the drawing's coordinates."""

    def __init__(self, first_step: int, last_step: int, lowest: float, highest: float) -> None:
        self.first_step, self.last_step = first_step, last_step
        margin = 0.05 * (highest - lowest) or 0.1
        self._lowest, self._highest = lowest - margin, highest + margin

    def grid(self) -> Sequence[float]:
        height = self._highest - self._lowest
        return [self._lowest + height * (line + 0.5) / _GRID_LINES for line in range(_GRID_LINES)]

    def grid_line(self, loss: float) -> str:
        y = self._y(loss)
        return (
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
        )

    def path(self, points: Points) -> str:
        return " ".join(f"{self._x(step):.1f},{self._y(loss):.1f}" for step, loss in points)

    def _x(self, step: int) -> float:
        return _LEFT + (_WIDTH - _LEFT) * (step - self.first_step) / max(1, self.last_step - self.first_step)

    def _y(self, loss: float) -> float:
        share = (self._highest - loss) / (self._highest - self._lowest)
        return _TOP + (_HEIGHT - _BOTTOM - _TOP) * share


def _thin(series: Series | None, *, is_noisy: bool) -> Points:
    if series is None:
        return ()
    stride = max(1, len(series.steps) // _MAX_POINTS)
    values = smooth(series.values, span=max(1, len(series.values) // 50)) if is_noisy else series.values
    pairs = list(zip(series.steps, values, strict=True))
    return tuple(pairs[::stride] if stride == 1 else [*pairs[::stride], pairs[-1]])
