from __future__ import annotations

import weakref
from collections.abc import Iterator

from pipeline.batches import batches


def test_a_batch_ends_with_the_item_that_makes_it_large_enough() -> None:
    texts = ["ab", "c", "defgh", "", "i"]
    assert list(batches(texts, size=len, min_size=3)) == [["ab", "c"], ["defgh"], ["", "i"]]
    assert list(batches([], size=len, min_size=3)) == []


def test_no_item_of_an_earlier_batch_is_held() -> None:
    class Document:
        pass

    made: list[weakref.ref[Document]] = []

    def documents() -> Iterator[Document]:
        for _ in range(3):
            assert all(document() is None for document in made)
            document = Document()
            made.append(weakref.ref(document))
            yield document
            del document

    for batch in batches(documents(), size=lambda document: 1, min_size=1):
        assert len(batch) == 1
        del batch
    assert len(made) == 3
