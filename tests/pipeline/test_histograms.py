from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pipeline.histograms import Histograms, length_bound

DOCUMENTS = st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(0, 1 << 40)), max_size=30)


def slow(documents: list[tuple[int, int]]) -> Histograms:
    """One document at a time, by the definition of the bins."""
    lengths = [max(k for k in range(90) if length_bound(k) <= tokens) for tokens, _ in documents]
    fiftieths = [min(50, (tokens - 1) * 50 // max(1, size)) for tokens, size in documents]

    def counts(bins: list[int], amount: Callable[[int], int]) -> list[int]:
        return [sum(amount(k) for k, one in enumerate(bins) if one == bin) for bin in range(max(bins, default=-1) + 1)]

    return Histograms(
        documents_by_length=counts(lengths, lambda k: 1),
        tokens_by_length=counts(lengths, lambda k: documents[k][0]),
        documents_by_tokens_per_byte=counts(fiftieths, lambda k: 1),
    )


def fast(documents: list[tuple[int, int]]) -> Histograms:
    result = Histograms()
    result.add(tokens=[tokens for tokens, _ in documents], text_bytes=[size for _, size in documents])
    return result


def test_lengths_fall_into_half_octaves() -> None:
    assert [length_bound(k) for k in range(10)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    histograms = fast([(5, 9), (6, 9), (7, 9), (8, 9)])
    assert histograms.documents_by_length == [0, 0, 0, 1, 2, 1]
    assert histograms.tokens_by_length == [0, 0, 0, 5, 13, 8]


def test_tokens_per_byte_are_those_of_the_text_without_eos() -> None:
    # 4 tokens of 100 bytes are 0.04; 9 of 9 and 20 of 9 are in the last bin
    assert fast([(5, 100), (10, 9), (21, 9)]).documents_by_tokens_per_byte == [0, 0, 1, *[0] * 47, 2]


@given(DOCUMENTS)
def test_batches_are_counted_as_documents_one_by_one(documents: list[tuple[int, int]]) -> None:
    assert fast(documents) == slow(documents)


@given(DOCUMENTS, DOCUMENTS)
def test_histograms_add_up_in_any_grouping(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    together = fast(left)
    together.add(tokens=[tokens for tokens, _ in right], text_bytes=[size for _, size in right])
    assert fast(left) + fast(right) == fast(right) + fast(left) == together == fast([*left, *right])
