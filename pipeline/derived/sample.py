"""A dataset of some documents of another one, drawn at random by a seed, in the order of the stream.

Each document draws a number, and those with the smallest are taken: so many documents, so large a share of them, or as
many as it takes to reach so many tokens. So a smaller sample of a seed is part of a larger one. Sizes are counted on
the training documents; of the validation documents the same share is drawn.

The largest number that is taken is found in two passes over the numbers, which are drawn again in each: memory does
not grow with the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.derived.draw import Draw
from pipeline.derived.new_dataset import SHARD_SIZE_BYTES, NewDataset, manifest_of_part, read_tokenizer_of
from pipeline.derived.new_directory import new_directory
from pipeline.document import PipelineError
from pipeline.shards.format import DatasetManifest, OriginRecord, Split, SplitRecord, read_manifest
from pipeline.shards.reader import read_rows

NOT_SAMPLED = "not_sampled"

# the first pass sorts the numbers into so many bins by their first bits
_BINS = 1 << 16
_BIN_SHIFT = np.uint64(64 - 16)

# the numbers of a run of documents, and what each counts
Weighed = Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How much is drawn; a `fraction` is of the documents."""

    unit: Literal["fraction", "documents", "tokens"]
    amount: float


def sample(
    dataset: Path, output: Path, *, size: SampleSize, seed: int, shard_size_bytes: int = SHARD_SIZE_BYTES
) -> DatasetManifest:
    """Make the dataset `output`; what is not drawn counts as dropped, as `not_sampled`.

    Raises PipelineError if `output` exists or there is not so much to draw, DatasetError if the dataset is damaged.
    """
    manifest = read_manifest(dataset)
    limits = _limits(dataset, manifest, size, seed=seed)
    origin = OriginRecord(verb="sample", options={size.unit: size.amount, "seed": seed}, datasets=(manifest.digest(),))
    with new_directory(output) as directory, NewDataset(directory, shard_size_bytes=shard_size_bytes) as new:
        tokenizer_content = read_tokenizer_of(dataset, manifest)
        for name, record in manifest.splits.items():
            draw = Draw(seed, purpose="sample", split=name)
            for shard in record.shards:
                for rows in read_rows(dataset, shard):
                    limit = limits[name]
                    numbers = draw.take(len(rows))
                    if limit is not None:
                        new.add(name, rows, np.flatnonzero(numbers <= limit).tolist(), source=shard.source)
        part = manifest_of_part(manifest, new.shards, name=output.name, origin=origin, rest_as=NOT_SAMPLED)
        return new.finish(part, tokenizer_content)


def _limits(dataset: Path, manifest: DatasetManifest, size: SampleSize, *, seed: int) -> dict[Split, np.uint64 | None]:
    """The largest number that is taken of each split; None: no document."""
    train = manifest.splits["train"]
    if size.unit == "fraction" and not 0 < size.amount < math.inf:
        raise PipelineError(f"--fraction {size.amount} of {dataset}: wanted a number above 0, up to 1")
    wanted = round(size.amount * train.documents) if size.unit == "fraction" else int(size.amount)
    there = train.tokens if size.unit == "tokens" else train.documents
    if not 0 < wanted <= there:
        raise PipelineError(
            f"--{size.unit} {size.amount} of {dataset} asks for {wanted:,} of {there:,} training "
            f"{'tokens' if size.unit == 'tokens' else 'documents'}; ask for 1 to {there:,}"
        )

    def by_documents(name: Split, record: SplitRecord) -> Weighed:
        draw = Draw(seed, purpose="sample", split=name)
        for shard in record.shards:
            yield draw.take(shard.documents), np.ones(shard.documents, dtype=np.int64)

    def by_tokens() -> Weighed:
        draw = Draw(seed, purpose="sample", split="train")
        for shard in train.shards:
            for rows in read_rows(dataset, shard):
                yield draw.take(len(rows)), rows.lengths

    limit = smallest_limit(by_tokens if size.unit == "tokens" else lambda: by_documents("train", train), wanted)
    limits: dict[Split, np.uint64 | None] = {"train": limit}
    if "validation" in manifest.splits:
        record = manifest.splits["validation"]
        taken = sum(int((numbers <= limit).sum()) for numbers, _ in by_documents("train", train))
        documents = round(taken / train.documents * record.documents)
        limits["validation"] = (
            smallest_limit(lambda: by_documents("validation", record), documents) if documents else None
        )
    return limits


def smallest_limit(weighed: Callable[[], Weighed], wanted: int) -> np.uint64:
    """The smallest number such that the documents with numbers up to it count at least `wanted` > 0 together.

    `weighed` is called twice; all documents together must count so much.
    """
    counts = np.zeros(_BINS, dtype=np.int64)
    for numbers, weights in weighed():
        np.add.at(counts, (numbers >> _BIN_SHIFT).astype(np.intp), weights)
    sums = np.cumsum(counts)
    last_bin = int(np.searchsorted(sums, wanted))
    before = int(sums[last_bin] - counts[last_bin])
    inside = [
        (numbers[chosen], weights[chosen])
        for numbers, weights in weighed()
        for chosen in [(numbers >> _BIN_SHIFT) == last_bin]
    ]
    numbers = np.concatenate([found for found, _ in inside])
    weights = np.concatenate([found for _, found in inside])
    order = np.argsort(numbers, kind="stable")
    place = int(np.searchsorted(np.cumsum(weights[order]), wanted - before))
    return np.uint64(numbers[order][place])
