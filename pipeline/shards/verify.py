"""Re-reads a dataset against its manifest: every byte, every row, every sum."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa

from pipeline.shards.format import (
    SCHEMA,
    TOKENIZER_FILE,
    WORK_DIRECTORY,
    DatasetManifest,
    ShardRecord,
    Split,
    TokenizerRecord,
    digest_file,
    read_manifest,
    split_directory,
)


def verify_dataset(dataset: Path, *, threads: int) -> list[str]:
    """One line a problem, beginning with the file's path below the dataset; none means whole.

    Raises DatasetError if there is no manifest to compare with.
    """
    manifest = read_manifest(dataset)
    problems = [
        *_verify_tokenizer(dataset, manifest.tokenizer),
        *_verify_sums(manifest),
        *_verify_names(dataset, manifest),
    ]
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda shard: _verify_shard(dataset, shard, manifest.tokenizer), shards):
            problems.extend(found)
    return problems


def row_problem(batch: pa.RecordBatch, tokenizer: TokenizerRecord) -> str | None:
    """What is wrong with the first bad row of a batch, if any is."""
    input_ids = batch.column("input_ids")
    if batch.column("document_id").null_count or input_ids.null_count:
        return "a row is null"
    offsets = input_ids.offsets.to_numpy()
    ids = input_ids.values.to_numpy()[offsets[0] : offsets[-1]]
    if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
        return f"id {ids.max()} is not below vocab_size={tokenizer.vocab_size}"
    eos_positions = np.flatnonzero(ids == tokenizer.eos_token_id)
    row_ends = offsets[1:] - offsets[0] - 1
    if not np.array_equal(eos_positions, row_ends):
        return f"a row does not end in EOS ({tokenizer.eos_token_id}), or holds it before its end"
    return None


def _verify_tokenizer(dataset: Path, record: TokenizerRecord) -> Iterator[str]:
    path = dataset / TOKENIZER_FILE
    if not path.is_file():
        yield f"{TOKENIZER_FILE}: missing"
    elif digest_file(path) != record.digest:
        yield f"{TOKENIZER_FILE}: contents changed"


def _verify_sums(manifest: DatasetManifest) -> Iterator[str]:
    for name, split in manifest.splits.items():
        for field in ("documents", "tokens"):
            total = sum(getattr(shard, field) for shard in split.shards)
            if total != getattr(split, field):
                yield f"manifest.json: {name} says {getattr(split, field):,} {field}, its shards say {total:,}"
    kept = sum(split.documents for split in manifest.splits.values())
    dropped = sum(record.documents for record in manifest.dropped.values())
    if manifest.documents_in != kept + dropped:
        yield f"manifest.json: {manifest.documents_in:,} documents in, but {kept:,} kept and {dropped:,} dropped"


def _verify_names(dataset: Path, manifest: DatasetManifest) -> Iterator[str]:
    if (dataset / WORK_DIRECTORY).is_dir():
        return  # a run is adding shards, whose manifest comes at the end
    known = {dataset / shard.path for split in manifest.splits.values() for shard in split.shards}
    for split in get_args(Split):
        for path in sorted(split_directory(dataset, split).glob("*.arrow")):
            # `datasets` stores what it computes, such as a shuffled order, beside the shards
            if path not in known and not path.name.startswith("cache-"):
                yield f"{path.relative_to(dataset)}: not in the manifest; remove it"


def _verify_shard(dataset: Path, shard: ShardRecord, tokenizer: TokenizerRecord) -> list[str]:
    path = dataset / shard.path
    if not path.is_file():
        return [f"{shard.path}: missing"]
    size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
        return [f"{shard.path}: {size_bytes:,} bytes, wanted {shard.size_bytes:,}"]
    if digest_file(path) != shard.digest:
        return [f"{shard.path}: contents changed (another digest than the manifest's)"]
    return [f"{shard.path}: {problem}" for problem in _verify_rows(path, shard, tokenizer)]


def _verify_rows(path: Path, shard: ShardRecord, tokenizer: TokenizerRecord) -> Iterator[str]:
    documents = tokens = 0
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            if not stream.schema.equals(SCHEMA):
                yield f"another schema: {' '.join(str(stream.schema).split())}"
                return
            for batch in stream:
                documents += batch.num_rows
                tokens += len(batch.column("input_ids").flatten())
                if problem := row_problem(batch, tokenizer):
                    yield problem
    except pa.ArrowInvalid as error:
        yield f"not an Arrow stream: {' '.join(str(error).split())[:160]}"
        return
    if (documents, tokens) != (shard.documents, shard.tokens):
        yield f"{documents:,} documents and {tokens:,} tokens, wanted {shard.documents:,} and {shard.tokens:,}"
