"""Bar charts as inline SVG, coloured by the page's style sheet: classes c0 … c7, `axis`, `grid`. No script, no library.

Every bar has a `<title>`, which browsers show when the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.markup import Markup, element, join
from pipeline.quantities import short_number

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 12, 40

COLOURS = 8


@dataclass(frozen=True, slots=True)
class Series:
    """Amounts that belong together: one for each bin of a histogram."""

    name: str
    amounts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands under the bins: a name, the lower bounds' texts with one more for the end, and every how many."""

    name: str
    bounds: Sequence[str]
    ticks_every: int


def stacked_histogram(series: Sequence[Series], *, axis: Axis, unit: str) -> Markup:
    """Bins side by side, the series' amounts on top of each other. `unit` names what is counted."""
    bins = len(axis.bounds) - 1
    totals = [sum(one.amounts[k] for one in series) for k in range(bins)]
    step, top = nice_scale(max(totals, default=0))
    bin_width = (WIDTH - LEFT - RIGHT) / max(1, bins)
    floor = HEIGHT - BOTTOM
    drawn = [_grid_line(value, top=top) for value in range(0, top + 1, step)]
    for k in range(bins):
        height_below = 0.0
        for index, one in enumerate(series):
            if not one.amounts[k]:
                continue
            height = (floor - TOP) * one.amounts[k] / top
            said = f"{one.name}: {one.amounts[k]:,} {unit}, {axis.bounds[k]} to {axis.bounds[k + 1]} {axis.name}"
            drawn.append(
                element(
                    "rect",
                    element("title", said),
                    class_=f"c{index % COLOURS}",
                    x=_round(LEFT + k * bin_width + 0.5),
                    y=_round(floor - height_below - height),
                    width=_round(bin_width - 1),
                    height=_round(height),
                )
            )
            height_below += height
    for k in range(0, bins + 1, axis.ticks_every):
        drawn.append(_text(axis.bounds[k], x=LEFT + k * bin_width, y=floor + 15, anchor="middle"))
    drawn.append(_text(axis.name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, anchor="middle"))
    return element("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="histogram")


def share_bar(shares: Sequence[tuple[str, float, str]]) -> Markup:
    """One line that is full at 1: (title, share, class of the colour), side by side."""
    drawn, start = [], 0.0
    for title, share, colour in shares:
        x, width = _round(1000 * start), _round(1000 * share)
        drawn.append(element("rect", element("title", title), class_=colour, x=x, y=0, width=width, height=14))
        start += share
    return element("svg", *drawn, viewBox="0 0 1000 14", preserveAspectRatio="none", role="img", class_="share")


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """(name, class of the colour) with a square each."""
    entries = [
        element(
            "span",
            element("svg", element("rect", class_=colour, width=10, height=10), viewBox="0 0 10 10", class_="key"),
            name,
        )
        for name, colour in names
    ]
    return element("p", join(entries), class_="legend")


def nice_scale(largest: int, *, lines: int = 4) -> tuple[int, int]:
    """The step between the lines of an axis, 1, 2 or 5 times a power of ten, and the line at or above `largest`."""
    raw = max(1.0, largest / lines)
    power = 10 ** math.floor(math.log10(raw))
    step = next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= raw)
    return step, max(1, math.ceil(largest / step)) * step


def _grid_line(value: int, *, top: int) -> Markup:
    y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top
    line = element("line", class_="grid" if value else "axis", x1=LEFT, x2=WIDTH - RIGHT, y1=_round(y), y2=_round(y))
    return join([line, _text(short_number(value), x=LEFT - 6, y=y + 4, anchor="end")])


def _text(content: str, *, x: float, y: float, anchor: str) -> Markup:
    return element("text", content, x=_round(x), y=_round(y), text_anchor=anchor)


def _round(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
