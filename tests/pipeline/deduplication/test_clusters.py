from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication import clusters as clusters_module
from pipeline.deduplication.clusters import Clusters, number_dtype

PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


def roots_in_plain_python(links: list[tuple[int, int]], documents: int) -> list[int]:
    clusters = [{document} for document in range(documents)]
    for one, other in links:
        joined = clusters[one] | clusters[other]
        for document in joined:
            clusters[document] = joined
    return [min(cluster) for cluster in clusters]


@given(batches=st.lists(PAIRS, max_size=3))
def test_roots_are_the_first_of_each_cluster(batches: list[list[tuple[int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters_module, "_STEP", 7)
        clusters = Clusters(30)
        for batch in batches:
            ones, others = np.array(batch, np.uint32).reshape(-1, 2).T
            clusters.link(ones, others)
        expected = roots_in_plain_python([pair for batch in batches for pair in batch], 30)
        assert clusters.roots().tolist() == expected


def test_long_chains_are_joined_in_few_rounds() -> None:
    # in the worst order: every document linked to the next, given from the end
    documents = 200_000
    numbers = np.arange(documents, dtype=np.uint32)
    clusters = Clusters(documents)
    clusters.link(numbers[:0:-1], numbers[-2::-1])
    assert not clusters.roots().any()


def test_numbers_take_four_bytes_as_long_as_they_can() -> None:
    assert number_dtype((1 << 32) - 1) == np.uint32
    assert number_dtype(1 << 32) == np.uint64
