"""JSONL to a tokenized dataset on disk, on two workers: ours with each engine, and the peers that can be imported.

    python benchmarks/encoding.py --megabytes 48 180 --rounds 5

`datasets` is always there; datatrove, litdata, mosaicml-streaming and megatron-core take part where they are installed
(in an environment of their own: `pip install datatrove[processing] litdata mosaicml-streaming megatron-core`). The text
is sources and documents of the standard library and of the installed packages, each file a document; the tokenizer is
trained on a part of it unless one is given. In each round everyone runs once, in turn, in a process of its own.

`seconds` begin after the imports and end when the output is on disk, ours with manifest and digests.
`whole` is the process from its start to its end, `cpu` the processor seconds of it and all its children, `peak` the
memory of the largest process. The name is not tokenize.py: that would hide the standard library's module from every
program of this folder.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from encoding_contenders import CONTENDERS, FILES, WORKERS

from pipeline.tokenizer.train import train_tokenizer

RATIOS = ("ours, splintr", "ours, tokenizers")
TRAINING_BYTES = 20_000_000

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of one process and its descendants."""

    seconds: float
    whole_s: float
    cpu_s: float
    peak_bytes: int


def run_one(name: str, folder: Path) -> None:
    """In a process of its own: prints the seconds after the imports."""
    import_all, contender = CONTENDERS[name]
    import_all()
    with tempfile.TemporaryDirectory(dir=folder) as output:
        started = time.perf_counter()
        contender(folder, Path(output))
        print(json.dumps(time.perf_counter() - started), flush=True)


@functools.cache
def can_import(name: str) -> bool:
    """Tried in a process of its own; says why not."""
    code = f"from encoding_contenders import CONTENDERS; CONTENDERS[{name!r}][0]()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        print(f"left out: {name} ({done.stderr.strip().splitlines()[-1]})")
    return done.returncode == 0


def measure(name: str, folder: Path) -> Measurement:
    """Raises SystemExit if the contender fails."""
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    # not by this file's path: each process that multiprocessing starts would import it again
    code = f"from pathlib import Path; from encoding import run_one; run_one({name!r}, Path({str(folder)!r}))"
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    # errors go to a file: a pipe that nobody empties fills up
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parent, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        whole_s = cpu_s = 0.0
        peak_kib = exit_status = 0
        while True:
            try:
                pid, status, usage = os.wait4(-1, 0)
            except ChildProcessError:
                break
            if pid == process.pid:
                whole_s, exit_status = time.perf_counter() - started, status
            cpu_s += usage.ru_utime + usage.ru_stime
            peak_kib = max(peak_kib, usage.ru_maxrss)
        errors.seek(0)
        if exit_status:
            raise SystemExit(f"{name} failed:\n{errors.read()[-2000:]}")
    assert process.stdout is not None
    seconds = json.loads(process.stdout.read().splitlines()[-1])
    return Measurement(seconds=seconds, whole_s=whole_s, cpu_s=cpu_s, peak_bytes=1024 * peak_kib)


def texts() -> Iterator[str]:
    """Each file a text, in random order, again and again."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    standard_library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in standard_library.rglob("*") if "site-packages" not in file.parts]
    files += [file for folder in packages for file in Path(folder).rglob("*")]
    files = sorted({file for file in files if file.suffix in (".py", ".md", ".rst", ".txt") and file.is_file()})
    random.Random(0).shuffle(files)
    while True:
        for file in files:
            if text := file.read_bytes().decode(errors="ignore").strip():
                yield text


def some_texts(size_bytes: int) -> Iterator[str]:
    for text in texts():
        yield text
        size_bytes -= len(text.encode())
        if size_bytes <= 0:
            return


def write_corpus(folder: Path, size_bytes: int) -> int:
    """FILES files of about equal size; returns the bytes of text."""
    written = [0] * FILES
    files = [(folder / f"{index}.jsonl").open("w") for index in range(FILES)]
    for text in some_texts(size_bytes):
        index = written.index(min(written))
        files[index].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        written[index] += len(text.encode())
    for file in files:
        file.close()
    return sum(written)


def table(folder: Path, wanted: list[str], *, megabytes: int, rounds: int) -> None:
    text_bytes = write_corpus(folder, megabytes * 1_000_000)
    names = [name for name in wanted if can_import(name)]
    results: dict[str, list[Measurement]] = {name: [] for name in names}
    measure("ours, splintr", folder)  # the first run on this tokenizer is measured as one of its own
    for _ in range(rounds):
        for name in names:
            results[name].append(measure(name, folder))
    medians = {name: statistics.median(run.seconds for run in runs) for name, runs in results.items()}
    ratios = [name for name in RATIOS if name in names]
    print(f"\n{text_bytes / 1e6:,.0f} MB of text, {WORKERS} workers, medians of {rounds} rounds in turn")
    heads = ("seconds", "least", "most", "whole", "cpu", "MB/s", "peak MB")
    print(f"{'':<20}{''.join(f'{head:>9}' for head in heads)}", end="")
    print("".join(f"{'÷ ' + name:>20}" for name in ratios))
    for name, runs in results.items():
        seconds = [run.seconds for run in runs]
        figures = (
            f"{medians[name]:.2f}",
            f"{min(seconds):.2f}",
            f"{max(seconds):.2f}",
            f"{statistics.median(run.whole_s for run in runs):.2f}",
            f"{statistics.median(run.cpu_s for run in runs):.2f}",
            f"{text_bytes / medians[name] / 1e6:.1f}",
            f"{max(run.peak_bytes for run in runs) / 1e6:.0f}",
        )
        print(f"{name:<20}{''.join(f'{figure:>9}' for figure in figures)}", end="")
        print("".join(f"{medians[name] / medians[other]:>19.2f}x" for other in ratios), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[48], help="sizes of text (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="(default: all)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: trained on the text)")
    parser.add_argument("--vocab-size", type=int, default=49_152, help="of the one that is trained")
    settings = parser.parse_args()
    # workers whose parent has ended become our children, so that their processor time is counted too
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if settings.tokenizer:
        content = settings.tokenizer.read_bytes()
    else:
        content = train_tokenizer(some_texts(TRAINING_BYTES), vocab_size=settings.vocab_size)
    for megabytes in settings.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / "tokenizer.json").write_bytes(content)
            table(Path(temporary), settings.contenders, megabytes=megabytes, rounds=settings.rounds)


if __name__ == "__main__":
    main()
