from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.charts import Axis, Series, nice_scale, share_bar, stacked_histogram


def rectangles(svg: str) -> list[dict[str, str]]:
    return [dict(one.attrib) for one in ElementTree.fromstring(svg).iter("rect")]


def test_bars_stand_on_each_other_in_proportion() -> None:
    axis = Axis("tokens", ["1", "2", "4"], ticks_every=1)
    bars = rectangles(stacked_histogram([Series("a", [10, 0]), Series("b", [30, 20])], axis=axis, unit="documents"))
    # the scale ends at 40: 178 pixels from 190 up to 12
    assert [(bar["class"], float(bar["y"]), float(bar["height"])) for bar in bars] == [
        ("c0", 145.5, 44.5),
        ("c1", 12, 133.5),
        ("c1", 101, 89),
    ]


def test_a_bar_says_what_it_counts() -> None:
    axis = Axis("tokens", ["1", "2"], ticks_every=1)
    svg = stacked_histogram([Series("web", [1234])], axis=axis, unit="documents")
    assert "<title>web: 1,234 documents, 1 to 2 tokens</title>" in svg


def test_an_empty_histogram_is_drawn() -> None:
    assert rectangles(stacked_histogram([], axis=Axis("tokens", ["1"], ticks_every=1), unit="documents")) == []


def test_shares_lie_side_by_side() -> None:
    bars = rectangles(share_bar([("a", 0.25, "kept"), ("b", 0.75, "c1")]))
    assert [(bar["x"], bar["width"]) for bar in bars] == [("0", "250"), ("250", "750")]


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(0, (1, 1)), (3, (1, 3)), (7, (2, 8)), (40, (10, 40)), (41, (20, 60)), (950_000, (500_000, 1_000_000))],
)
def test_the_lines_of_an_axis_are_round_numbers(largest: int, scale: tuple[int, int]) -> None:
    assert nice_scale(largest) == scale
