"""A dataset in figures and examples, for `smollm2 pipeline inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.derived.new_dataset import read_tokenizer_of
from pipeline.empty_validation import empty_validation_warning
from pipeline.lengths import Lengths
from pipeline.shards.format import DatasetManifest, SplitRecord
from pipeline.shards.reader import read_rows

BAR_CHARACTERS = 40
SAMPLE_TOKENS = 60


def sample_documents(dataset: Path, split: SplitRecord, *, count: int) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """`count` documents, evenly spaced over the split: id and token ids. Opens the shards that hold them only."""
    wanted = sorted({index * split.documents // count for index in range(count)}) if split.documents else []
    first = 0
    for shard in split.shards:
        if not wanted or wanted[0] >= first + shard.documents:
            first += shard.documents
            continue
        for rows in read_rows(dataset, shard):
            while wanted and wanted[0] < first + len(rows):
                yield rows.document(wanted.pop(0) - first)
            first += len(rows)


def summary(dataset: Path, manifest: DatasetManifest, lengths: Lengths, *, samples: int) -> Iterator[str]:
    """The lines that `inspect` prints. `lengths` are those of the training split.

    Raises DatasetError, before the samples, if the tokenizer is missing or not that of the manifest.
    """
    yield from _counts(dataset, manifest)
    yield from _sources(manifest)
    train = manifest.splits["train"]
    yield "\ntokens a document"
    buckets = lengths.powers_of_two()
    most = max((bucket.documents for bucket in buckets), default=1)
    for bucket in buckets:
        bar = "#" * round(BAR_CHARACTERS * bucket.documents / most)
        yield f"  {bucket.low:>10,} to {bucket.high - 1:>10,} {bucket.documents:>12,} {bar}"
    if train.documents:
        yield f"  mean {train.tokens / train.documents:,.1f}, median about {lengths.median():,}"
        yield f"  longest {lengths.longest_tokens:,}: {lengths.longest}"
    tokenizer = Tokenizer.from_buffer(read_tokenizer_of(dataset, manifest))
    for document_id, ids in sample_documents(dataset, train, count=samples):
        text = tokenizer.decode(ids[:SAMPLE_TOKENS].tolist(), skip_special_tokens=False)
        more = f" … {len(ids) - SAMPLE_TOKENS:,} more tokens" if len(ids) > SAMPLE_TOKENS else ""
        yield f"\n{document_id}\n  {text!r}{more}"


def _counts(dataset: Path, manifest: DatasetManifest) -> Iterator[str]:
    yield f"{manifest.name}: {dataset}"
    if manifest.version > 1:
        yield f"  version {manifest.version}, after {str(manifest.previous)[:19]}…"
    if manifest.origin is not None:
        options = " ".join(f"{name}={value}" for name, value in manifest.origin.options.items())
        yield f"  made by {' '.join(filter(None, (manifest.origin.verb, options)))} of: " + ", ".join(
            f"{digest[:19]}…" for digest in manifest.origin.datasets
        )
    for name, split in manifest.splits.items():
        yield (
            f"  {name:<11} {split.documents:>14,} documents {split.tokens:>18,} tokens {len(split.shards):>7,} shards"
        )
    if (warning := empty_validation_warning(dataset, manifest)) is not None:
        yield f"  warning: {warning}"
    is_part = manifest.origin is not None and manifest.origin.verb in ("split", "sample")
    estimated = ", estimated from those of the whole" if is_part else ""
    yield f"  {manifest.text_bytes_kept / max(1, manifest.tokens):.2f} bytes a token, EOS counted{estimated}"
    yield f"  tokenizer of {manifest.tokenizer.vocab_size:,} entries, {manifest.tokenizer.digest[:19]}…"
    yield f"  {manifest.documents_in:,} documents in"
    width = max(map(len, manifest.dropped), default=0)
    for reason, dropped in manifest.dropped.items():
        yield f"  dropped {reason:<{width}} {dropped.documents:>10,} documents {dropped.text_bytes:>14,} bytes"


def _sources(manifest: DatasetManifest) -> Iterator[str]:
    """A row a source, the largest first."""
    if not manifest.sources:
        return
    width = max(len("source"), *map(len, manifest.sources))
    yield f"\n  {'source':<{width}} {'documents':>14} {'tokens':>18} {'share':>7} {'bytes a token':>14}"
    for name, source in sorted(manifest.sources.items(), key=lambda item: -item[1].tokens):
        share = source.tokens / max(1, manifest.tokens)
        bytes_a_token = source.text_bytes / max(1, source.tokens)
        yield f"  {name:<{width}} {source.documents:>14,} {source.tokens:>18,} {share:>7.1%} {bytes_a_token:>14.2f}"
