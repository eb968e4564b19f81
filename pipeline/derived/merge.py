"""One dataset of the documents of several, in the order in which they are given.

Shards are linked or copied, never rewritten. Training documents stay training documents: give datasets of one
`validation_fraction`, or a text that one holds for validation may be trained on in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.derived.new_dataset import NewDataset, Placement, read_tokenizer_of
from pipeline.derived.new_directory import new_directory
from pipeline.document import PipelineError
from pipeline.report import add_up_encoding
from pipeline.shards.format import (
    DatasetManifest,
    DroppedRecord,
    OriginRecord,
    SourceRecord,
    digest_bytes,
    read_manifest,
)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What was made, and how many of its shards are links and copies."""

    manifest: DatasetManifest
    linked_shards: int
    copied_shards: int


def merge(output: Path, datasets: Sequence[Path], *, placement: Placement = "link") -> MergeResult:
    """Make the dataset `output`.

    Raises PipelineError if `output` exists or the datasets do not go together, DatasetError if one is damaged.
    """
    manifests = [read_manifest(dataset) for dataset in datasets]
    _check(datasets, manifests)
    with new_directory(output) as directory, NewDataset(directory, placement=placement) as new:
        tokenizers = [
            read_tokenizer_of(dataset, manifest) for dataset, manifest in zip(datasets, manifests, strict=True)
        ]
        for dataset, manifest in zip(datasets, manifests, strict=True):
            for split, record in manifest.splits.items():
                for shard in record.shards:
                    new.place(split, dataset, shard)
        manifest = new.finish(_manifest(output.name, manifests), tokenizers[0])
    return MergeResult(manifest, new.linked_shards, new.copied_shards)


def _check(datasets: Sequence[Path], manifests: Sequence[DatasetManifest]) -> None:
    seen: set[Path] = set()
    for dataset, manifest in zip(datasets, manifests, strict=True):
        if dataset.resolve() in seen:
            raise PipelineError(
                f"{dataset} is given twice; to see its documents more often, give it more weight when training"
            )
        seen.add(dataset.resolve())
        if manifest.tokenizer != manifests[0].tokenizer:
            raise PipelineError(
                f"{dataset} was made with another tokenizer ({manifest.tokenizer.digest[:19]}…) than {datasets[0]} "
                f"({manifests[0].tokenizer.digest[:19]}…); make it again with "
                f"tokenizer.path={datasets[0]}/tokenizer.json"
            )


def _manifest(name: str, manifests: Sequence[DatasetManifest]) -> DatasetManifest:
    dropped: dict[str, DroppedRecord] = {}
    sources: dict[str, SourceRecord] = {}
    for manifest in manifests:
        for reason, record in manifest.dropped.items():
            before = dropped.get(reason, DroppedRecord(documents=0, text_bytes=0))
            dropped[reason] = DroppedRecord(
                documents=before.documents + record.documents, text_bytes=before.text_bytes + record.text_bytes
            )
        for source, given in manifest.sources.items():
            had = sources.get(source, SourceRecord(documents=0, tokens=0, text_bytes=0))
            sources[source] = SourceRecord(
                documents=had.documents + given.documents,
                tokens=had.tokens + given.tokens,
                text_bytes=had.text_bytes + given.text_bytes,
            )
    origin = OriginRecord(verb="merge", datasets=tuple(manifest.digest() for manifest in manifests))
    return DatasetManifest(
        name=name,
        tokenizer=manifests[0].tokenizer,
        splits={},
        documents_in=sum(manifest.documents_in for manifest in manifests),
        text_bytes_kept=sum(manifest.text_bytes_kept for manifest in manifests),
        dropped=dict(sorted(dropped.items())),
        config_digest=digest_bytes(origin.model_dump_json().encode()),
        encoding=add_up_encoding(record for manifest in manifests for record in manifest.encoding),
        sources=sources if all(manifest.sources for manifest in manifests) else {},
        origin=origin,
    )
