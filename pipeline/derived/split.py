"""A dataset cut into parts, in the order of its stream, so that `merge` of the parts is the dataset again.

Cuts are counted on the training documents; the validation documents are cut in proportion. Shards that lie in one part
are linked or copied; only those that a cut goes through are written anew. For parts at random, shuffle first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.derived.new_dataset import (
    SHARD_SIZE_BYTES,
    NewDataset,
    Placement,
    manifest_of_part,
    read_tokenizer_of,
)
from pipeline.derived.new_directory import new_directory, refuse_existing
from pipeline.document import PipelineError
from pipeline.shards.format import DatasetError, DatasetManifest, OriginRecord, Split, SplitRecord, read_manifest
from pipeline.shards.reader import read_rows


@dataclass(frozen=True, slots=True)
class Cuts:
    """The sizes of all parts but the last, which takes the rest.

    `fractions` are of the documents. A part by `tokens` ends with the document that reaches so many.
    """

    unit: Literal["fractions", "documents", "tokens"]
    sizes: tuple[float, ...] | tuple[int, ...]


def split(
    dataset: Path,
    outputs: Sequence[Path],
    *,
    cuts: Cuts,
    placement: Placement = "link",
    shard_size_bytes: int = SHARD_SIZE_BYTES,
) -> list[DatasetManifest]:
    """Make the datasets `outputs`, one after the other; those that an earlier attempt has made are left as they are.

    Raises PipelineError if an output is something else, or a part would be empty; DatasetError for a damaged dataset.
    """
    manifest = read_manifest(dataset)
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise PipelineError(f"the same output is given twice: {', '.join(map(str, outputs))}; give each its own")
    bounds = _bounds(dataset, manifest, cuts, outputs=outputs)
    tokenizer_content = read_tokenizer_of(dataset, manifest)
    origins = [
        OriginRecord(
            verb="split",
            options={cuts.unit: ",".join(map(str, cuts.sizes)), "part": part},
            datasets=(manifest.digest(),),
        )
        for part in range(len(outputs))
    ]
    made = [_made_before(output, origin) for output, origin in zip(outputs, origins, strict=True)]
    for part, (output, origin) in enumerate(zip(outputs, origins, strict=True)):
        if made[part] is not None:
            continue
        with (
            new_directory(output) as directory,
            NewDataset(directory, placement=placement, shard_size_bytes=shard_size_bytes) as new,
        ):
            for name, record in manifest.splits.items():
                _take(new, dataset, name, record, start=bounds[name][part], stop=bounds[name][part + 1])
            manifest_of = manifest_of_part(manifest, new.shards, name=output.name, origin=origin, rest_as=None)
            made[part] = new.finish(manifest_of, tokenizer_content)
    return [part for part in made if part is not None]


def _made_before(output: Path, origin: OriginRecord) -> DatasetManifest | None:
    """The manifest of `output` if it is this part. Raises PipelineError if it is anything else."""
    try:
        manifest = read_manifest(output)
    except (DatasetError, NotADirectoryError):
        refuse_existing(output)
        return None
    if manifest.origin != origin:
        refuse_existing(output)
    return manifest


def _bounds(dataset: Path, manifest: DatasetManifest, cuts: Cuts, *, outputs: Sequence[Path]) -> dict[Split, list[int]]:
    """The numbers of the documents at which the parts of each split begin, and their number at the end."""
    if len(cuts.sizes) != len(outputs) - 1:
        raise PipelineError(
            f"--{cuts.unit} gives {len(cuts.sizes)} sizes for {len(outputs)} outputs; give one for each output but the "
            "last, which takes the rest"
        )
    train = manifest.splits["train"]
    inner = _inner_bounds(dataset, train, cuts)
    bounds = [0, *inner, train.documents]
    less = "smaller fractions" if cuts.unit == "fractions" else f"fewer {cuts.unit}"
    for (start, stop), output in zip(pairwise(bounds), outputs, strict=True):
        if stop <= start:
            raise PipelineError(
                f"{output} would hold no training documents: {dataset} has {train.documents:,} of them and "
                f"{train.tokens:,} tokens; give {less}"
            )
    return {
        name: [round(bound / train.documents * record.documents) for bound in bounds]
        for name, record in manifest.splits.items()
    }


def _inner_bounds(dataset: Path, train: SplitRecord, cuts: Cuts) -> list[int]:
    if cuts.unit == "tokens":
        return _bounds_by_tokens(dataset, train, [int(size) for size in cuts.sizes])
    documents_a_size = train.documents if cuts.unit == "fractions" else 1
    return [round(total * documents_a_size) for total in accumulate(cuts.sizes)]


def _bounds_by_tokens(dataset: Path, record: SplitRecord, sizes: Sequence[int]) -> list[int]:
    bounds: list[int] = []
    tokens_before = 0
    for size in sizes:
        reached = _documents_reaching(dataset, record, tokens_before + size)
        if reached is None:
            raise PipelineError(
                f"{dataset} has {record.tokens:,} training tokens, fewer than --tokens asks for; give fewer"
            )
        bound, tokens_before = reached
        bounds.append(bound)
    return bounds


def _documents_reaching(dataset: Path, record: SplitRecord, wanted_tokens: int) -> tuple[int, int] | None:
    """The fewest first documents with so many tokens, and their tokens; None if all have fewer.

    Opens one shard.
    """
    documents = tokens = 0
    for shard in record.shards:
        if tokens + shard.tokens < wanted_tokens:
            documents += shard.documents
            tokens += shard.tokens
            continue
        for rows in read_rows(dataset, shard):
            ends = tokens + rows.bounds[1:]
            row = int(np.searchsorted(ends, wanted_tokens))
            if row < len(rows):
                return documents + row + 1, int(ends[row])
            documents += len(rows)
            tokens += len(rows.ids)
    return None


def _take(new: NewDataset, dataset: Path, name: Split, record: SplitRecord, *, start: int, stop: int) -> None:
    first = 0
    for shard in record.shards:
        last = first + shard.documents
        if start <= first and last <= stop:
            new.place(name, dataset, shard)
        elif first < stop and start < last:
            row = first
            for rows in read_rows(dataset, shard):
                inside = range(max(start - row, 0), min(stop - row, len(rows)))
                new.add(name, rows, inside, source=shard.source)
                row += len(rows)
        first = last
