"""Reading random packed samples: our reader against `datasets`, on the same ids in the same page cache.

    python benchmarks/loader.py --tokens 100_000_000

`datasets` reads a packed dataset, one row of 2,049 ids a sample, with the numpy format; we cut samples from the stream
of documents. A batch is what the trainer gets: int64 inputs, labels and document numbers; ours includes finding the
sample through mixture and permutation. The first pass, which warms the page cache, is not timed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from launch.data.loader import PackedSamples, Source
from launch.data.packing import pack, sample_span
from launch.data.shard_reader import TokenStream
from pipeline.shards import format as contract

SEQUENCE = 2048
BATCH = 64
BATCH_TOKENS = 1 << 20  # ids a record batch, as the pipeline writes them


def write_rows(file: Path, ids: np.ndarray, row_tokens: int) -> contract.ShardRecord:
    """One Arrow file of rows of equal length, in record batches of about BATCH_TOKENS ids, as the pipeline's are."""
    rows = len(ids) // row_tokens
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        for first in range(0, rows, BATCH_TOKENS // row_tokens):
            count = min(BATCH_TOKENS // row_tokens, rows - first)
            offsets = pa.array(np.arange(count + 1, dtype=np.int32) * row_tokens)
            values = pa.array(ids[first * row_tokens : (first + count) * row_tokens])
            columns = [pa.ListArray.from_arrays(offsets, values), pa.array([str(row) for row in range(count)])]
            writer.write_batch(pa.record_batch(columns, schema=contract.SCHEMA))
    record = {"documents": rows, "tokens": rows * row_tokens, "size_bytes": file.stat().st_size, "digest": "-"}
    return contract.ShardRecord(path=file.name, **record)


def write_dataset(folder: Path, ids: np.ndarray, document_tokens: int) -> Path:
    """A dataset of the contract with one shard."""
    shard = write_rows(folder / "data-00000-000.arrow", ids, document_tokens)
    split = contract.SplitRecord(documents=shard.documents, tokens=shard.tokens, shards=(shard,))
    tokenizer = contract.TokenizerRecord(digest="-", vocab_size=49_152, eos_token_id=0)
    counts = {"documents_in": shard.documents, "text_bytes_kept": 0, "config_digest": "-"}
    manifest = contract.DatasetManifest(name="loader", tokenizer=tokenizer, splits={"train": split}, **counts)
    contract.write_manifest(folder, manifest)
    return folder


def tokens_per_second(read: Callable[[np.ndarray], object], places: np.ndarray, at_once: int) -> float:
    """The best of ten passes over the places, after one that is not timed."""
    times_s = []
    for _ in range(11):
        started_s = time.perf_counter()
        for first in range(0, len(places), at_once):
            read(places[first : first + at_once])
        times_s.append(time.perf_counter() - started_s)
    return len(places) * (SEQUENCE + 1) / min(times_s[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast random packed samples are read.")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="ids on the disk (default 100,000,000)")
    parser.add_argument("--samples", type=int, default=2048, help="read in a pass (default 2,048)")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ids = np.random.default_rng(0).integers(1, 49_152, size=settings.tokens, dtype=np.uint16)
        ids[499::500] = 0
        write_dataset(folder, ids, document_tokens=500)
        write_rows(folder / "packed.arrow", ids, SEQUENCE + 1)
        rows = datasets.Dataset.from_file(str(folder / "packed.arrow")).select_columns("input_ids").with_format("numpy")
        stream = TokenStream(folder, "train")
        samples = PackedSamples([Source("all", folder, 1.0)], seed=0, sequence_length=SEQUENCE)
        places = np.random.default_rng(1).integers(0, len(rows), size=settings.samples)
        readers: dict[str, tuple[Callable[[np.ndarray], object], int]] = {
            "ids of one sample: ours": (lambda at: stream.read(*sample_span(int(at[0]), SEQUENCE)), 1),
            "ids of one sample: datasets": (lambda at: rows[int(at[0])]["input_ids"], 1),
            f"batch of {BATCH}: ours": (samples.read, BATCH),
            f"batch of {BATCH}: datasets": (lambda at: pack(rows[at]["input_ids"], eos_token_id=0), BATCH),
        }
        rates = {name: tokens_per_second(read, places, at_once) for name, (read, at_once) in readers.items()}
    print(
        f"{settings.tokens:,} ids, {settings.samples:,} random samples of {SEQUENCE + 1:,}, page cache warm, one thread"
    )
    print(f"{'':<30}{'Mtokens/s':>12}{'ours is':>14}")
    for name, rate in rates.items():
        print(f"{name:<30}{rate / 1e6:>12,.1f}{rates[name.replace('datasets', 'ours')] / rate:>13.1f}x")


if __name__ == "__main__":
    main()
