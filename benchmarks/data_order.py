"""What the order of a run costs: from its construction to the first batch, in memory, and to seek in.

    python benchmarks/data_order.py --tokens 10_000_000_000_000 --sources 500
    PYTHONPATH=. VENV_WITH_MEGATRON_CORE/bin/python benchmarks/data_order.py

Ours computes the order: four stages over all sources, a keyed permutation for each source and epoch. The datasets are
manifests of that many tokens in shards of the pipeline's size, all of which are names of one real file, so that the
first batch is read as in a run. The peers store the order, and are built for as many tokens as fit into --stored-tokens
and scaled from there to the whole, since their time and memory grow with it: `numpy` shuffles an index of all samples;
Megatron's GPTDataset (megatron-core, where it is installed) builds the indices that its training loads, for documents
of 1,000 tokens, with its compiled helper. Memory is the peak that Python and numpy held meanwhile, in a second start.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import struct
import tempfile
import time
import timeit
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch  # noqa: F401  (what a run has imported before it comes to its order)
from megatron_dataset import open_gpt_dataset

from launch.data.loader import Loader, PackedSamples, Source
from launch.data.schedule import Stage
from pipeline.shards import format as contract

SEQUENCE, SEEK, MICRO_BATCH = 2048, 4096, 4
SAMPLES_PER_STEP = 4096 * MICRO_BATCH
DOCUMENT_TOKENS = 1000


def write_shard(file: Path, tokens: int) -> contract.ShardRecord:
    """One Arrow file of documents of equal length, in record batches of about a million ids as the pipeline's."""
    documents = (1 << 20) // DOCUMENT_TOKENS
    ids = np.ones(documents * DOCUMENT_TOKENS, dtype=np.uint16)
    ids[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = 0
    offsets = pa.array(np.arange(documents + 1, dtype=np.int32) * DOCUMENT_TOKENS)
    columns = [pa.ListArray.from_arrays(offsets, pa.array(ids)), pa.array(["document"] * documents)]
    batch, batches = pa.record_batch(columns, schema=contract.SCHEMA), -(-tokens // len(ids))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    size_bytes, digest = file.stat().st_size, contract.digest_bytes(b"")
    return contract.ShardRecord(
        path=file.name, documents=batches * documents, tokens=batches * len(ids), size_bytes=size_bytes, digest=digest
    )


def write_sources(folder: Path, *, tokens: int, sources: int, shard: contract.ShardRecord) -> list[Source]:
    """Datasets of random sizes whose shards are all one file."""
    shares = np.random.default_rng(1).lognormal(0, 1.5, size=sources)
    made = []
    for number, share in enumerate(shares / shares.sum() * tokens):
        dataset = folder / f"source-{number}"
        dataset.mkdir()
        names = [f"data-{index:05d}-000.arrow" for index in range(max(1, round(share / shard.tokens)))]
        for name in names:
            (dataset / name).symlink_to(folder / shard.path)
        split = contract.split_record(shard.model_copy(update={"path": name}) for name in names)
        tokenizer = contract.TokenizerRecord(digest="-", vocab_size=49_152, eos_token_id=0)
        counts = {"documents_in": split.documents, "text_bytes_kept": 0, "config_digest": "-"}
        manifest = contract.DatasetManifest(name=dataset.name, tokenizer=tokenizer, splits={"train": split}, **counts)
        contract.write_manifest(dataset, manifest)
        made.append(Source(dataset.name, dataset, float(share)))
    return made


class ComputedOrder:
    """As a run has it: four stages, the last half of the sources from the second on; read up to the first batch."""

    def __init__(self, sources: list[Source], total: int) -> None:
        random = np.random.default_rng(3)
        weights = [
            np.array([source.weight for source in sources]) * random.uniform(0.5, 2, len(sources)) for _ in "4444"
        ]
        weights[0][len(sources) // 2 :] = 0
        stages = [
            Stage(end, tuple(stage.tolist()))
            for end, stage in zip((total // 4, total // 2, total * 3 // 4, None), weights, strict=True)
        ]
        self.samples = PackedSamples(sources, seed=0, sequence_length=SEQUENCE, stages=stages)

    def read_first_batch(self) -> None:
        """Of rank 0 of 4,096."""
        with Loader(
            self.samples,
            first_step=0,
            samples_per_step=SAMPLES_PER_STEP,
            micro_batch_size=MICRO_BATCH,
            rank=0,
            world_size=SAMPLES_PER_STEP // MICRO_BATCH,
        ) as loader:
            next(loader)

    def seek(self, samples: np.ndarray) -> np.ndarray:
        """Which sample of its source each sample of the run is."""
        return self.samples.locate(samples)[1]


class StoredOrder:
    """A shuffled index of every sample."""

    def __init__(self, samples: int) -> None:
        self.order = np.random.default_rng(0).permutation(samples)

    def seek(self, samples: np.ndarray) -> np.ndarray:
        return np.asarray(self.order[samples])


class MegatronOrder:
    """Megatron's GPTDataset over a .idx of documents; its .bin is a file of holes, and is not read here."""

    def __init__(self, prefix: Path, samples: int) -> None:
        self.dataset = open_gpt_dataset(prefix, samples, sequence_length=SEQUENCE)

    def seek(self, samples: np.ndarray) -> np.ndarray:
        chosen = self.dataset.shuffle_index[samples]
        return np.asarray(self.dataset.sample_index[chosen])


def write_megatron(prefix: Path, tokens: int) -> None:
    """The index of documents of equal length (the format is described in `pipeline/derived/megatron.py`)."""
    documents = tokens // DOCUMENT_TOKENS
    with prefix.with_suffix(".idx").open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1))
        file.write(np.full(documents, DOCUMENT_TOKENS, dtype="<i4").tobytes())
        file.write((np.arange(documents, dtype="<i8") * DOCUMENT_TOKENS * 2).tobytes())
        file.write(np.arange(documents + 1, dtype="<i8").tobytes())
    with prefix.with_suffix(".bin").open("wb") as file:
        file.truncate(documents * DOCUMENT_TOKENS * 2)


def start(make: Callable[[], Any]) -> tuple[Any, float, float, int]:
    """The order, its start-up in seconds of the clock and of the processor, and the most bytes held meanwhile (in a
    second start: tracing is slow)."""
    started_s, processor_s = time.perf_counter(), time.process_time()
    order = make()
    elapsed_s, used_s = time.perf_counter() - started_s, time.process_time() - processor_s
    tracemalloc.start()
    make()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return order, elapsed_s, used_s, peak_bytes


def seek_time_s(order: Any, total: int, at_once: int) -> float:
    """Seconds a sample, for random samples `at_once` a call; the best of five passes."""
    samples = np.random.default_rng(2).integers(0, total, size=(5, at_once))
    return min(timeit.repeat(lambda: [order.seek(chosen) for chosen in samples], number=1)) / samples.size


def computed(sources: list[Source], total: int) -> ComputedOrder:
    order = ComputedOrder(sources, total)
    order.read_first_batch()
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description="What the order of a run costs to start and to seek in.")
    parser.add_argument("--tokens", type=int, default=10**13, help="of the whole mixture (default 10^13)")
    parser.add_argument("--sources", type=int, default=500, help="datasets in the mixture (default 500)")
    parser.add_argument("--shard-tokens", type=int, default=1 << 28, help="ids a shard (default 2^28, of 512 MiB)")
    parser.add_argument("--stored-tokens", type=int, default=10**9, help="of the peers' indices (default 10^9)")
    parser.add_argument(
        "--seeks", type=int, default=10**6, help="random samples of the run that are found (default 10^6)"
    )
    settings = parser.parse_args()
    total, stored = settings.tokens // SEQUENCE, settings.stored_tokens // SEQUENCE
    print(f"{settings.tokens:.0e} tokens, {settings.sources} sources, {total:,} samples of {SEQUENCE:,}; one thread")
    print(f"{'':<34}{'start s':>10}{'CPU s':>9}{'memory MB':>12}{'seek of 1, us':>15}{f'of {SEEK}, us each':>18}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        warnings.filterwarnings("ignore", module="megatron")
        shard = write_shard(folder / "shard.arrow", settings.shard_tokens)
        sources = write_sources(folder, tokens=settings.tokens, sources=settings.sources, shard=shard)
        ours = show("ours, to the first batch", lambda: computed(sources, total), total)
        order = ours[0]
        rows = {"numpy's shuffled index": lambda: StoredOrder(stored)}
        if importlib.util.find_spec("megatron") is not None:
            prefix = folder / "megatron"
            importlib.import_module("megatron.core.datasets.gpt_dataset")
            write_megatron(prefix, settings.stored_tokens)
            rows["Megatron's GPTDataset"] = lambda: MegatronOrder(prefix, stored - 1)
        else:
            print("megatron-core is not installed, and left out")
        for name, make in rows.items():
            _, start_s, _, peak_bytes = show(f"{name}, {settings.stored_tokens:.0e}", make, stored - 1)
            scale = settings.tokens / settings.stored_tokens
            print(
                f"{'  scaled to all':<34}{start_s * scale:>10,.0f}{'':>9}{peak_bytes * scale / 1e6:>12,.0f}   "
                f"our start {start_s * scale / ours[1]:,.0f} times, memory {peak_bytes * scale / ours[3]:,.0f} times"
            )
        wanted = np.random.default_rng(4).integers(0, total, size=settings.seeks)
        started_s = time.process_time()
        found, places = order.samples.locate(wanted)
        print(f"{settings.seeks:,} random seeks in one call: {time.process_time() - started_s:.2f} s of the processor")
        seen = len(
            {*zip(found.tolist(), order.samples.schedule.locate(wanted)[1].tolist(), places.tolist(), strict=True)}
        )
        print(f"different samples among them: {seen:,} of {len(np.unique(wanted)):,} asked for")


def show(name: str, make: Callable[[], Any], samples: int) -> tuple[Any, float, float, int]:
    measured = start(make)
    order, start_s, processor_s, peak_bytes = measured
    one_s, block_s = seek_time_s(order, samples, 1), seek_time_s(order, samples, SEEK)
    print(
        f"{name:<34}{start_s:>10.2f}{processor_s:>9.2f}{peak_bytes / 1e6:>12,.1f}{one_s * 1e6:>15.1f}"
        f"{block_s * 1e6:>18.2f}"
    )
    return measured


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
