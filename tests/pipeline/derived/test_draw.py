from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.derived.draw import Draw


@given(seed=st.integers(0, 2**64 - 1), sizes=st.lists(st.integers(0, 9), max_size=6))
def test_numbers_do_not_depend_on_how_the_stream_is_cut(seed: int, sizes: list[int]) -> None:
    cut = Draw(seed, purpose="sample", split="train")
    whole = Draw(seed, purpose="sample", split="train").take(sum(sizes))
    pieces = [cut.take(size) for size in sizes]
    assert np.array_equal(np.concatenate([*pieces, np.array([], dtype=np.uint64)]), whole)


def test_seeds_splits_and_purposes_draw_apart() -> None:
    draws = [
        Draw(0, purpose="sample", split="train"),
        Draw(1, purpose="sample", split="train"),
        Draw(0, purpose="sample", split="validation"),
        Draw(0, purpose="shuffle", split="train"),
        Draw(0, purpose="shuffle", split="validation"),
    ]
    assert len({tuple(draw.take(4).tolist()) for draw in draws}) == 5


def test_the_numbers_stay_what_they_were() -> None:
    # a dataset that was made by a seed must come again from it: a new numpy must not change these
    assert Draw(1, purpose="shuffle", split="train").take(2).tolist() == [5705853004827290377, 6584680345644299050]
