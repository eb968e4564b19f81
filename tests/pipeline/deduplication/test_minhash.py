from __future__ import annotations

import numpy as np
import pytest

from pipeline.deduplication import ngrams
from pipeline.deduplication.config import MinhashConfig
from pipeline.deduplication.minhash import MinHasher


def pairs(jaccard: float, *, count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pairs of sets of 150 random words of a given similarity."""
    draw = np.random.default_rng(seed)
    common = round(2 * 150 * jaccard / (1 + jaccard))
    ones, others = [], []
    for _ in range(count):
        shared, one, other = (draw.integers(1, 1 << 63, size, np.uint64) for size in (common, 150, 150))
        ones.append(np.concatenate([shared, one[common:]]))
        others.append(np.concatenate([other[common:], shared]))
    return ones, others


@pytest.mark.parametrize(
    ("jaccard", "low", "high"),
    # 1 - (1 - s^8)^14 is 0.053, 0.77 and 0.9996; three standard deviations of 400 draws are 0.034, 0.063 and 0.003
    [(0.5, 0.02, 0.09), (0.75, 0.70, 0.84), (0.9, 0.99, 1.0)],
)
def test_a_band_is_shared_as_often_as_the_formula_says(jaccard: float, low: float, high: float) -> None:
    hasher = MinHasher(MinhashConfig(ngram_words=1))
    ones, others = pairs(jaccard, count=400, seed=4)
    shared = (hasher.band_hashes(ones) == hasher.band_hashes(others)).any(axis=0)
    assert low <= shared.mean() <= high


def test_unlike_documents_share_no_band() -> None:
    hasher = MinHasher(MinhashConfig())
    draw = np.random.default_rng(1)
    # one n-gram each: what differs must differ in all 64 bits' worth
    bands = hasher.band_hashes(list(draw.integers(1, 1 << 63, (20_000, 5), np.uint64)))
    assert len(np.unique(bands)) == bands.size


def test_order_and_repetition_of_ngrams_do_not_count_and_the_seed_does() -> None:
    words = np.random.default_rng(2).integers(1, 1 << 63, 20, np.uint64)
    hasher = MinHasher(MinhashConfig(ngram_words=1))
    bands = hasher.band_hashes([words, words[::-1], np.concatenate([words, words])])
    assert (bands[:, :1] == bands).all()
    assert (MinHasher(MinhashConfig(ngram_words=1, seed=1)).band_hashes([words])[:, 0] != bands[:, 0]).all()


def test_a_document_has_the_same_bands_alone_in_company_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    documents = [draw.integers(1, 1 << 63, size, np.uint64) for size in (200, 3, 5, 1, 0, 47)]
    hasher = MinHasher(MinhashConfig())
    together = hasher.band_hashes(documents)
    monkeypatch.setattr(ngrams.pieces_of, "__kwdefaults__", {"piece_words": 20})
    alone = np.concatenate([hasher.band_hashes([document]) for document in documents], axis=1)
    assert (together == alone).all()


def test_short_documents_are_one_ngram_of_all_their_words() -> None:
    words = np.array([5, 6, 7], np.uint64)
    bands = MinHasher(MinhashConfig()).band_hashes([words, words, words[:2]])
    assert (bands[:, 0] == bands[:, 1]).all()
    assert (bands[:, 0] != bands[:, 2]).all()


def test_the_hashes_are_those_of_the_first_release() -> None:
    # a change of these numbers is a change of every deduplicated dataset
    bands = MinHasher(MinhashConfig(bands=2)).band_hashes([np.arange(1, 9, dtype=np.uint64)])
    assert bands[:, 0].tolist() == [15691451347710707853, 8041396662835101917]
