"""A corpus that is larger than memory, through `smollm2 pipeline run` with two workers: does the rate stay, and memory?

    python benchmarks/large_corpus.py --gigabytes 20

The corpus is not stored. Some 400 MB of JSON lines are generated (the texts of `encoding.py`: sources and documents of
the standard library and of the installed packages) in files of 100 MB, and each file is hard-linked under as many names
as the size wants, `part-00000.jsonl`, `part-00001.jsonl` …, in turn. To the pipeline every name is a file of its own,
cut as a user's would be. What repeats: the same text comes again every 400 MB, so that reading is from the page cache;
a vocabulary does not grow from then on. What does not: documents have ids of their own, every unit its shards, and all
of the output is written and synced. Nothing is deduplicated.

Rates are tokens by the run's own clock, from `status.json`; each tenth of the tokens has a line. The first tenth begins
when a unit for each worker is done (before that they start), and the last ends when one of them finds no more (the
other then ends its unit alone); the seconds before and after are in the total only. Memory is what Linux counts as
resident, pages that processes share counted in each; peaks are the kernel's own high-water marks, so that none falls
between two looks. The output goes when the program ends, also by Ctrl-C.

The speed of a shared machine swings by half within minutes, and that of the work with it. So every few seconds the run
is stopped for half a second, in which as many processes encode the same texts (`yardstick.py`); a tenth is as fast as
the first if it made as many tokens for each megabyte that the machine could then encode. Both ratios are printed, and
the second is held to the bound.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
from encoding import TRAINING_BYTES, some_texts, texts
from run_watch import Look, Peaks, read_status, watch
from yardstick import Yardstick, open_yardstick

from pipeline.shards.format import read_manifest
from pipeline.status import STATUS_FILE
from pipeline.tokenizer.train import train_tokenizer

WORKERS = 2
FILE_BYTES = 100_000_000
DISTINCT_FILES = 4
TENTHS = 10
PROBE_BYTES = 12_000_000
# of its input: two bytes for each token of three and a half
OUTPUT_SHARE = 0.65

MIN_GIGABYTES = 2.0  # below that a tenth is over before the machine is looked at again
MAX_WORKER_BYTES = 400_000_000
MIN_RATE_RATIO = 0.95


@dataclass(frozen=True, slots=True)
class Tenth:
    """How fast a tenth of the tokens was made and how fast the machine then encoded, and the first look after it."""

    tokens_per_s: float
    machine_megabytes_per_s: float
    end: Look

    @property
    def relative_rate(self) -> float:
        """Tokens for each megabyte that the machine could have encoded meanwhile."""
        return self.tokens_per_s / self.machine_megabytes_per_s


def write_corpus(folder: Path, size_bytes: int) -> int:
    """Returns the bytes under all names."""
    files = max(1, round(size_bytes / FILE_BYTES))
    stored = folder / "stored"
    stored.mkdir()
    source = texts()
    distinct = [stored / f"{index}.jsonl" for index in range(min(files, DISTINCT_FILES))]
    for path in distinct:
        left = FILE_BYTES
        with path.open("wb") as file:
            while left > 0:
                left -= file.write(json.dumps({"text": next(source)}, ensure_ascii=False).encode() + b"\n")
    (folder / "corpus").mkdir()
    for index in range(files):
        (folder / "corpus" / f"part-{index:05d}.jsonl").hardlink_to(distinct[index % len(distinct)])
    return sum(path.stat().st_size for path in (folder / "corpus").iterdir())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command; its log goes to `folder/log`. It is gone when this is left."""
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "config.yaml")]
    config = {
        "name": "large-corpus",
        "output_dir": str(folder / "dataset"),
        "sources": [{"name": "text", "type": "jsonl", "files": [str(folder / "corpus" / "*.jsonl")]}],
        "tokenizer": {"path": str(folder / "tokenizer.json")},
        "workers": WORKERS,
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    workers: list[psutil.Process] = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for worker in workers:  # they die with it, unless they stand still
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(workers, timeout=10)  # what still writes cannot be removed


def steady(looks: list[Look]) -> list[Look]:
    """Those from when a unit for each worker is done, so that both have begun, to the last at which both had some."""
    first = next(index for index, look in enumerate(looks) if look.units_done >= WORKERS)
    last = max(index for index, look in enumerate(looks) if look.busy_workers == WORKERS)
    return looks[first : last + 1]


def tenths(looks: list[Look], machine: Yardstick) -> list[Tenth]:
    """Of the tokens, each with its rates; the moments at which one ends lie between two looks."""
    tokens = [look.tokens for look in looks]
    marks = np.linspace(tokens[0], tokens[-1], TENTHS + 1)
    moments = np.interp(marks, tokens, [look.seconds for look in looks]).tolist()
    ends = [looks[bisect.bisect_left(tokens, round(mark))] for mark in marks[1:]]
    return [
        Tenth(
            tokens_per_s=made / (end - begin),
            machine_megabytes_per_s=machine.mean_megabytes_per_s(begin, end),
            end=look,
        )
        for made, (begin, end), look in zip(np.diff(marks), pairwise(moments), ends, strict=True)
    ]


def report(
    folder: Path, corpus_bytes: int, looks: list[Look], peaks: Peaks, machine: Yardstick, *, total_s: float
) -> bool:
    """Prints; returns whether memory and rate are within their bounds."""
    dataset = folder / "dataset"
    manifest = read_manifest(dataset)
    ended = (dataset / "manifest.json").stat().st_mtime
    shards = [dataset / shard.path for split in manifest.splits.values() for shard in split.shards]
    last_shard = max(path.stat().st_mtime for path in shards)
    output_bytes = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    used = steady(looks)
    parts = tenths(used, machine)
    ratio = parts[-1].relative_rate / parts[0].relative_rate
    units = read_status(dataset / STATUS_FILE)["units_total"]
    megabytes_a_token = corpus_bytes / manifest.tokens / 1e6
    print(f"\n{'tenth':>5}{'tokens/s':>12}{'MB/s':>8}{'÷ first':>9}{'machine':>9}{'÷ both':>9}  at its end")
    for number, part in enumerate(parts, start=1):
        print(
            f"{number:>5}{part.tokens_per_s:>12,.0f}{part.tokens_per_s * megabytes_a_token:>8.1f}"
            f"{part.tokens_per_s / parts[0].tokens_per_s:>9.3f}{part.machine_megabytes_per_s:>9.1f}"
            f"{part.relative_rate / parts[0].relative_rate:>9.3f}  {part.end}"
        )
    print(f"\ntotal            {total_s:.1f} s, {corpus_bytes / total_s / 1e6:.1f} MB/s from start to exit")
    print(f"before and after {used[0].seconds:.1f} s and {looks[-1].seconds - used[-1].seconds:.1f} s, not in a tenth")
    print(f"corpus           {corpus_bytes:,} bytes, {units:,} units, {manifest.documents_in:,} documents")
    print(f"dataset          {manifest.tokens:,} tokens, {output_bytes:,} bytes in {len(shards):,} shards")
    print(f"last to first    {parts[-1].tokens_per_s / parts[0].tokens_per_s:.3f}; of the machine's own speed ", end="")
    print(f"{ratio:.3f} (wanted: at least {MIN_RATE_RATIO})")
    print(f"peak, driver     {peaks.driver / 1e6:.0f} MB")
    print(f"peak, server     {peaks.server / 1e6:.0f} MB, which workers are forked off")
    for pid, peak in peaks.workers.items():
        print(f"peak, worker     {peak / 1e6:.0f} MB (pid {pid}; wanted: at most {MAX_WORKER_BYTES / 1e6:.0f})")
    print(f"manifest         {ended - last_shard:.2f} s after the last byte of the last shard")
    return ratio >= MIN_RATE_RATIO and max(peaks.workers.values()) <= MAX_WORKER_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20, help="of input, 10^9 bytes each (default: 20)")
    parser.add_argument("--folder", type=Path, help="where to work (default: that of temporary files)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: trained on the text)")
    parser.add_argument("--vocab-size", type=int, default=49_152, help="of the one that is trained")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; what was written is removed"))
    if settings.gigabytes < MIN_GIGABYTES:
        parser.error(f"--gigabytes {settings.gigabytes:g}, wanted at least {MIN_GIGABYTES}")
    size_bytes = round(settings.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=settings.folder) as temporary:
        folder = Path(temporary)
        needed = size_bytes * OUTPUT_SHARE + DISTINCT_FILES * FILE_BYTES
        if (free := shutil.disk_usage(folder).free) < needed:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB free, wanted {needed / 1e9:.1f}; name another folder: --folder")
        print("generating text, and a tokenizer of it", flush=True)
        if settings.tokenizer:
            content = settings.tokenizer.read_bytes()
        else:
            content = train_tokenizer(some_texts(TRAINING_BYTES), vocab_size=settings.vocab_size)
        (folder / "tokenizer.json").write_bytes(content)
        corpus_bytes = write_corpus(folder, size_bytes)
        print(f"running on {corpus_bytes / 1e9:.2f} GB", flush=True)
        probed = [*some_texts(PROBE_BYTES)]
        with open_yardstick(content, probed, workers=WORKERS) as machine, running(folder) as process:
            looks, peaks = watch(process, folder / "dataset", machine, log=folder / "log")
            total_s = machine.run_seconds(time.monotonic())
        is_within = report(folder, corpus_bytes, looks, peaks, machine, total_s=total_s)
    if not is_within:
        sys.exit("out of bounds")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; what was written is removed")
