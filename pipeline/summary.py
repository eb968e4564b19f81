"""A dataset in figures and examples, for `smollm2 pipeline inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.shards.format import TOKENIZER_FILE, DatasetError, DatasetManifest, SplitRecord

BAR_CHARACTERS = 40
SAMPLE_TOKENS = 60


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents whose length in tokens, EOS included, is in [low, high)."""

    low: int
    high: int
    documents: int


def length_histogram(dataset: Path, split: SplitRecord) -> list[Bucket]:
    """Document lengths in powers of two. Reads the offsets of the rows, not their ids.

    Raises DatasetError for a shard that cannot be read.
    """
    counts = np.zeros(64, dtype=np.int64)
    for batch in _batches(dataset, split):
        lengths = np.diff(batch.column("input_ids").offsets.to_numpy())
        exponents = np.frexp(lengths.astype(np.float64))[1] - 1
        counts += np.bincount(exponents, minlength=len(counts))
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    return [Bucket(1 << k, 1 << (k + 1), int(counts[k])) for k in range(used[0], used[-1] + 1)]


def sample_documents(dataset: Path, split: SplitRecord, *, count: int) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """`count` documents, evenly spaced over the split: id and token ids."""
    wanted = sorted({index * split.documents // count for index in range(count)}) if split.documents else []
    first = 0
    for batch in _batches(dataset, split):
        while wanted and wanted[0] < first + batch.num_rows:
            row = wanted.pop(0) - first
            ids = batch.column("input_ids")[row].values.to_numpy()
            yield batch.column("document_id")[row].as_py(), ids
        first += batch.num_rows
        if not wanted:
            return


def summary(dataset: Path, manifest: DatasetManifest, *, samples: int) -> Iterator[str]:
    """The lines that `inspect` prints."""
    tokens = sum(split.tokens for split in manifest.splits.values())
    yield f"{manifest.name}: {dataset}"
    for name, split in manifest.splits.items():
        yield (
            f"  {name:<11} {split.documents:>14,} documents {split.tokens:>18,} tokens {len(split.shards):>7,} shards"
        )
    yield f"  {manifest.text_bytes_kept / max(1, tokens):.2f} bytes a token, EOS counted"
    yield f"  tokenizer of {manifest.tokenizer.vocab_size:,} entries, {manifest.tokenizer.digest[:19]}…"
    yield f"  {manifest.documents_in:,} documents in"
    for reason, dropped in manifest.dropped.items():
        yield f"  dropped {reason:<15} {dropped.documents:>10,} documents {dropped.text_bytes:>14,} bytes"
    yield "\ntokens a document"
    buckets = length_histogram(dataset, manifest.splits["train"])
    most = max((bucket.documents for bucket in buckets), default=1)
    for bucket in buckets:
        bar = "#" * round(BAR_CHARACTERS * bucket.documents / most)
        yield f"  {bucket.low:>10,} to {bucket.high - 1:>10,} {bucket.documents:>12,} {bar}"
    tokenizer = Tokenizer.from_file(str(dataset / TOKENIZER_FILE))
    for document_id, ids in sample_documents(dataset, manifest.splits["train"], count=samples):
        text = tokenizer.decode(ids[:SAMPLE_TOKENS].tolist(), skip_special_tokens=False)
        more = f" … {len(ids) - SAMPLE_TOKENS:,} more tokens" if len(ids) > SAMPLE_TOKENS else ""
        yield f"\n{document_id}\n  {text!r}{more}"


def _batches(dataset: Path, split: SplitRecord) -> Iterator[pa.RecordBatch]:
    for shard in split.shards:
        try:
            with pa.memory_map(str(dataset / shard.path)) as file, pa.ipc.open_stream(file) as stream:
                yield from stream
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DatasetError(
                f"{dataset / shard.path} cannot be read ({reason}); `smollm2 pipeline verify {dataset}` says more"
            ) from None
