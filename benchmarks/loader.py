"""Reading random packed samples: our reader beside the peers that are installed, on the same ids in the page cache.

    python benchmarks/loader.py --tokens 100_000_000
    PYTHONPATH=$PWD VENV_WITH_PEERS/bin/python benchmarks/loader.py --tokens 1_000_000_000

We cut samples of 2,049 ids from the stream of documents, in the order of the run (mixture and permutation are part of
the time, located for many samples at once as the loader does it). A peer gives its samples as it gives them: rows of a
packed dataset (`datasets`), arrays (Megatron's numpy query, mosaicml-streaming), tensors (litdata), or a dictionary of
them (Megatron's own). `to int64`: what the trainer gets, with labels and document numbers; `datasets` packed as ours.
 Passes of all readers take turns and the best of each counts, in seconds of the processor; the first pass,
which warms the page cache, does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from loader_contenders import BATCH, CONTENDERS, SEQUENCE, Reader, datasets_rows

from launch.data.loader import PackedSamples, Source
from launch.data.packing import pack, sample_span
from launch.data.shard_reader import TokenStream
from pipeline.shards import format as contract

DOCUMENT_TOKENS = 500
AT_ONCE = 2048  # samples that are located together
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


def pass_time_s(reader: Reader, places: np.ndarray) -> float:
    """Seconds of the processor that reading all places takes."""
    read, at_once = reader
    started_s = time.process_time()
    for first in range(0, len(places), at_once):
        read(places[first : first + at_once])
    return time.process_time() - started_s


def our_readers(folder: Path) -> dict[str, Reader]:
    stream = TokenStream(folder, "train")
    samples = PackedSamples([Source("all", folder, 1.0)], seed=0, sequence_length=SEQUENCE)

    def rows_of(places: np.ndarray) -> list[np.ndarray]:
        """Views of the map, one a sample."""
        return [stream.read(*sample_span(sample, SEQUENCE)) for sample in samples.locate(places)[1].tolist()]

    def copied(places: np.ndarray) -> None:
        views = rows_of(places)
        for first in range(0, len(views), BATCH):
            np.stack(views[first : first + BATCH])

    def batches(places: np.ndarray) -> None:
        sources, found = samples.locate(places)
        for first in range(0, len(places), BATCH):
            samples.fetch(sources[first : first + BATCH], found[first : first + BATCH])

    return {
        "ours, views": (rows_of, AT_ONCE),
        f"ours, copied in rows of {BATCH}": (copied, AT_ONCE),
        f"ours, to int64, rows of {BATCH}": (batches, AT_ONCE),
    }


def all_readers(ids: np.ndarray, folder: Path) -> dict[str, Reader]:
    write_dataset(folder, ids, document_tokens=DOCUMENT_TOKENS)
    write_rows(folder / "packed.arrow", ids, SEQUENCE + 1)
    readers = our_readers(folder) | datasets_rows(folder / "packed.arrow")
    by_batch, at_once = readers[f"datasets, {BATCH} indices"]
    readers[f"datasets, to int64, rows of {BATCH}"] = (
        lambda at: pack(np.asarray(by_batch(at)), eos_token_id=0),
        at_once,
    )
    for name, make in CONTENDERS.items():
        try:
            readers |= make(ids, folder)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}")
    return readers


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast random packed samples are read.")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="ids on the disk (default 100,000,000)")
    parser.add_argument("--samples", type=int, default=2048, help="read in a pass (default 2,048)")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each reader that count (default 5)")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ids = np.random.default_rng(0).integers(1, 49_152, size=settings.tokens, dtype=np.uint16)
        ids[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = 0
        readers = all_readers(ids, Path(temporary))
        places = np.random.default_rng(1).integers(0, len(ids) // (SEQUENCE + 1) - 1, size=settings.samples)
        times_s: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(settings.rounds + 1):
            for name, reader in readers.items():
                times_s[name].append(pass_time_s(reader, places))
    rates = {name: settings.samples * (SEQUENCE + 1) / min(times[1:]) for name, times in times_s.items()}
    print(f"{settings.tokens:,} ids, {settings.samples:,} random samples of {SEQUENCE + 1:,}, page cache warm")
    ours = [name for name in rates if name.startswith("ours")]
    print(f"{'':<34}{'Mtokens/s':>12}{'our views':>12}{'our copies':>12}{'our int64':>12}")
    for name, rate in rates.items():
        print(f"{name:<34}{rate / 1e6:>12,.1f}" + "".join(f"{rates[own] / rate:>11.1f}x" for own in ours))


if __name__ == "__main__":
    main()
