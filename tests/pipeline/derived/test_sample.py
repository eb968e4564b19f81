from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.derived.draw import Draw
from pipeline.derived.sample import SampleSize, sample, smallest_limit
from pipeline.document import PipelineError
from pipeline.shards.format import DroppedRecord, Split, read_manifest
from pipeline.shards.verify import verify_dataset

Document = tuple[str, tuple[int, ...]]
Read = Callable[..., list[Document]]


def smallest(
    documents: list[Document], *, seed: int, split: Split, until: Callable[[list[Document]], bool]
) -> set[int]:
    """The reference: documents in the order of their numbers, one after the other until there are enough."""
    numbers = Draw(seed, purpose="sample", split=split).take(len(documents))
    taken: list[int] = []
    for index in sorted(range(len(documents)), key=numbers.tolist().__getitem__):
        if until([documents[other] for other in taken]):
            break
        taken.append(index)
    return set(taken)


@settings(max_examples=25, deadline=None)
@given(
    shards=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    unit=st.sampled_from(("fraction", "documents", "tokens")),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_sample_is_that_of_the_reference(
    shards: list[int],
    unit: str,
    share: float,
    seed: int,
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
    read_documents: Read,
) -> None:
    groups = [make_documents(size, seed=index) for index, size in enumerate(shards)]
    held = make_documents(7, seed=99)
    train = [document for group in groups for document in group]
    tokens = sum(len(ids) for _, ids in train)
    amount = {"fraction": share, "documents": round(share * len(train)), "tokens": round(share * tokens)}[unit]
    size = SampleSize(unit, amount)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", groups, [held])
        output = Path(folder) / "sample"
        if round(share * (tokens if unit == "tokens" else len(train))) == 0:
            with pytest.raises(PipelineError, match="asks for 0 of"):
                sample(dataset, output, size=size, seed=seed)
            return

        def enough(taken: list[Document]) -> bool:
            if unit == "tokens":
                return sum(len(ids) for _, ids in taken) >= amount
            return len(taken) >= round(share * len(train))

        chosen = smallest(train, seed=seed, split="train", until=enough)
        count = round(len(chosen) / len(train) * len(held))
        kept = smallest(held, seed=seed, split="validation", until=lambda taken: len(taken) >= count)
        sample(dataset, output, size=size, seed=seed)
        assert read_documents(output) == [document for index, document in enumerate(train) if index in chosen]
        assert read_documents(output, "validation") == [row for index, row in enumerate(held) if index in kept]
        assert verify_dataset(output, threads=1) == []


def test_a_smaller_sample_is_part_of_a_larger_one(dataset: Path, tmp_path: Path, read_documents: Read) -> None:
    sample(dataset, tmp_path / "small", size=SampleSize("documents", 10), seed=3)
    sample(dataset, tmp_path / "large", size=SampleSize("tokens", 150), seed=3)
    sample(dataset, tmp_path / "other", size=SampleSize("documents", 10), seed=4)
    small, large = set(read_documents(tmp_path / "small")), set(read_documents(tmp_path / "large"))
    assert small < large
    assert set(read_documents(tmp_path / "other")) != small


def test_what_is_not_drawn_is_accounted_for(dataset: Path, tmp_path: Path) -> None:
    whole = read_manifest(dataset)
    part = sample(dataset, tmp_path / "half", size=SampleSize("fraction", 0.5), seed=1)
    assert (part.splits["train"].documents, part.splits["validation"].documents) == (20, 6)
    assert part.documents_in == whole.documents == 52
    rest = whole.tokens - part.tokens
    assert part.dropped == {"not_sampled": DroppedRecord(documents=26, text_bytes=4 * rest)}
    assert sum(source.documents for source in part.sources.values()) == 26
    assert sum(source.tokens for source in part.sources.values()) == part.tokens
    assert part.origin is not None
    assert part.origin.options == {"fraction": 0.5, "seed": 1}


def test_all_of_it_drops_nothing(dataset: Path, tmp_path: Path, read_documents: Read) -> None:
    part = sample(dataset, tmp_path / "all", size=SampleSize("fraction", 1.0), seed=1)
    assert part.dropped == {}
    assert read_documents(tmp_path / "all") == read_documents(dataset)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            SampleSize("documents", 41),
            r"--documents 41 of .* asks for 41 of 40 training documents; ask for 1 to 40$",
        ),
        (SampleSize("fraction", 0.01), r"--fraction 0.01 of .* asks for 0 of 40 training documents"),
        (SampleSize("fraction", 1.5), r"--fraction 1.5 of .* asks for 60 of 40 training documents"),
        (
            SampleSize("tokens", 10_000),
            r"--tokens 10000 of .* asks for 10,000 of \d+ training tokens; ask for 1 to",
        ),
        (SampleSize("documents", -1), r"asks for -1 of 40"),
    ],
)
def test_what_is_not_there_cannot_be_drawn(dataset: Path, tmp_path: Path, size: SampleSize, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        sample(dataset, tmp_path / "out", size=size, seed=0)
    assert not (tmp_path / "out").exists()


def test_the_limit_is_found_where_all_numbers_share_their_first_bits() -> None:
    numbers = np.array([7, 3, 9, 5], dtype=np.uint64)
    weights = np.array([1, 10, 1, 1])

    def weighed() -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        yield numbers[:2], weights[:2]
        yield numbers[2:], weights[2:]

    # in their order: 3 counts 10, 5 makes it 11, 7 makes it 12, 9 makes it 13
    assert [int(smallest_limit(weighed, wanted)) for wanted in (1, 10, 11, 12, 13)] == [3, 3, 5, 7, 9]
