"""A dataset being made of the documents of others: shards are placed whole, or rows are written into new ones.

Contract: equal calls give equal bytes. Shards are numbered in the order in which they are placed or written; one that
is written holds documents of one source, or of none in particular. Nothing here is held in memory but an open batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pipeline.document import PipelineError
from pipeline.shards.format import (
    SPLITS,
    TOKENIZER_FILE,
    DatasetError,
    DatasetManifest,
    DroppedRecord,
    OriginRecord,
    ShardRecord,
    SourceRecord,
    Split,
    digest_bytes,
    split_directory,
    split_record,
    sync_directory,
    write_all_durably,
    write_manifest,
)
from pipeline.shards.hugging_face import hugging_face_files
from pipeline.shards.reader import Rows, check_size
from pipeline.shards.writer import DigestingFile, ShardWriter

SHARD_SIZE_BYTES = 512 << 20
_COPY_BYTES = 8 << 20

Placement = Literal["link", "copy"]


class NewDataset:
    """Fills a folder of `new_directory`. Use as a context, so that an error closes what is open; `finish` ends it."""

    def __init__(
        self, directory: Path, *, placement: Placement = "link", shard_size_bytes: int = SHARD_SIZE_BYTES
    ) -> None:
        self._directory = directory
        self._placement = placement
        self._shard_size_bytes = shard_size_bytes
        self._shards: dict[Split, list[ShardRecord]] = {split: [] for split in SPLITS}
        self._units: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self._writer: ShardWriter | None = None
        self._writing: tuple[Split, str | None] | None = None
        self.linked_shards = 0
        self.copied_shards = 0
        for split in SPLITS:
            split_directory(directory, split).mkdir(exist_ok=True)

    def __enter__(self) -> NewDataset:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.__exit__(*exception)

    def place(self, split: Split, dataset: Path, shard: ShardRecord) -> None:
        """Take a shard as it is: by a hard link where that is possible and wanted, else by a copy that is hashed.

        Raises DatasetError if it is missing or damaged.
        """
        self._close_writer()
        check_size(dataset, shard)
        target = split_directory(self._directory, split) / f"data-{self._next_unit(split):05d}-000.arrow"
        if self._placement == "link" and _link(dataset / shard.path, target):
            self.linked_shards += 1
        else:
            _copy(dataset / shard.path, target, digest=shard.digest)
            self.copied_shards += 1
        path = target.relative_to(self._directory).as_posix()
        self._shards[split].append(shard.model_copy(update={"path": path}))

    def add(self, split: Split, rows: Rows, chosen: Iterable[int], *, source: str | None) -> None:
        """Append the documents at the places `chosen`, in their order."""
        if self._writing != (split, source):
            self._close_writer()
        for row in chosen:
            if self._writer is None:
                self._writing = (split, source)
                self._writer = ShardWriter(
                    self._directory,
                    split=split,
                    unit=self._next_unit(split),
                    shard_size_bytes=self._shard_size_bytes,
                    source=source,
                )
            self._writer.add(*rows.document(row))

    def finish(self, manifest: DatasetManifest, tokenizer_content: bytes) -> DatasetManifest:
        """Write what stands beside the shards, and the manifest with the shards filled in, last.

        Raises PipelineError if there are no documents to train on.
        """
        self._close_writer()
        splits = {split: split_record(shards) for split, shards in self._shards.items()}
        if not splits["train"].documents:
            raise PipelineError(f"{manifest.name} would hold no documents to train on; take more of the dataset")
        files = {self._directory / TOKENIZER_FILE: tokenizer_content}
        for split, record in splits.items():
            directory = split_directory(self._directory, split)
            if record.shards:
                sync_directory(directory)
                files |= hugging_face_files(directory, record)
            else:
                directory.rmdir()  # `load_from_disk` cannot open it
        write_all_durably(files)
        manifest = manifest.model_copy(update={"splits": splits})
        write_manifest(self._directory, manifest)
        return manifest

    @property
    def shards(self) -> list[ShardRecord]:
        """All shards so far, of all splits."""
        self._close_writer()
        return [shard for shards in self._shards.values() for shard in shards]

    def _next_unit(self, split: Split) -> int:
        self._units[split] += 1
        return self._units[split] - 1

    def _close_writer(self) -> None:
        if self._writer is not None:
            assert self._writing is not None
            self._shards[self._writing[0]].extend(self._writer.finish())
        self._writer = self._writing = None


def read_tokenizer_of(dataset: Path, manifest: DatasetManifest) -> bytes:
    """The dataset's `tokenizer.json`. Raises DatasetError if it is not that of the manifest."""
    path = dataset / TOKENIZER_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; copy it again from where the dataset came from") from None
    if digest_bytes(content) != manifest.tokenizer.digest:
        raise DatasetError(f"{path} has changed since the dataset was made; copy it again from where it came from")
    return content


def manifest_of_part(
    whole: DatasetManifest, shards: Sequence[ShardRecord], *, name: str, origin: OriginRecord, rest_as: str | None
) -> DatasetManifest:
    """The manifest, without its splits, of a dataset of some documents of `whole`.

    `rest_as` is the reason under which the others count as dropped; None: they are no business of this dataset.
    """
    documents = sum(shard.documents for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    sources = _sources_of_part(whole, shards)
    if sources:
        text_bytes = sum(source.text_bytes for source in sources.values())
    else:
        text_bytes = _share(whole.text_bytes_kept, tokens, whole.tokens)
    dropped: dict[str, DroppedRecord] = {}
    if rest_as is not None and documents < whole.documents:
        dropped[rest_as] = DroppedRecord(
            documents=whole.documents - documents,
            text_bytes=max(0, whole.text_bytes_kept - text_bytes),  # estimates, which are rounded
        )
    return DatasetManifest(
        name=name,
        tokenizer=whole.tokenizer,
        splits={},
        documents_in=documents if rest_as is None else whole.documents,
        text_bytes_kept=text_bytes,
        dropped=dropped,
        config_digest=digest_bytes(origin.model_dump_json().encode()),
        encoding=whole.encoding,
        sources=sources,
        origin=origin,
    )


def _sources_of_part(whole: DatasetManifest, shards: Sequence[ShardRecord]) -> dict[str, SourceRecord]:
    """Those of the shards, if each of them is of one source that is known."""
    sums: dict[str, tuple[int, int]] = {}
    for shard in shards:
        if shard.source is None or shard.source not in whole.sources:
            return {}
        documents, tokens = sums.get(shard.source, (0, 0))
        sums[shard.source] = (documents + shard.documents, tokens + shard.tokens)
    return {
        source: SourceRecord(
            documents=sums[source][0],
            tokens=sums[source][1],
            text_bytes=_share(record.text_bytes, sums[source][1], record.tokens),
        )
        for source, record in whole.sources.items()
        if source in sums
    }


def _share(total: int, part: int, whole: int) -> int:
    return round(total * part / max(1, whole))


def _link(path: Path, target: Path) -> bool:
    """Whether a hard link could be made: not across file systems, nor where the file system or its owner forbids it."""
    try:
        # in a cache of the Hugging Face hub files are relative links, which point nowhere from another folder
        target.hardlink_to(path.resolve())
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy(path: Path, target: Path, *, digest: str) -> None:
    with path.open("rb") as source:
        copy = DigestingFile(target)
        try:
            while content := source.read(_COPY_BYTES):
                copy.write(content)
            copy.sync()
        finally:
            copy.close()
    if copy.digest != digest:
        raise DatasetError(f"{path} is damaged (another digest than its manifest's); make or copy that dataset again")
