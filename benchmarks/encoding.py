"""JSONL to a tokenized dataset on disk, on two workers: ours with each engine, and the peers that can be imported.

    python benchmarks/encoding.py --megabytes 48 180 --rounds 5

`datasets` is always there; datatrove, litdata and mosaicml-streaming take part where they are installed. The text is
the standard library's sources, each file a document, repeated to the size asked for; the tokenizer is trained on it
unless one is given. In each round everyone runs once, in turn, in a process of its own; a time begins after the
imports and ends when the output is on disk: ours with the parity check at the start, manifest and digests. The name
is not tokenize.py: that would hide the standard library's module from every program of this folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.tokenizer.special_tokens import EOS_TOKEN
from pipeline.tokenizer.train import train_tokenizer

WORKERS = 2
FILES = 2  # for peers that cut their work by files only
BATCH_DOCUMENTS = 256


def ours(folder: Path, output: Path, engine: str) -> None:
    from pipeline.config import PipelineConfig
    from pipeline.run import run

    size_bytes = sum(file.stat().st_size for file in folder.glob("*.jsonl"))
    run(
        PipelineConfig.model_validate(
            {
                "name": "benchmark",
                "output_dir": output,
                "sources": [{"name": "text", "type": "jsonl", "files": [str(folder / "*.jsonl")]}],
                "tokenizer": {"path": folder / "tokenizer.json", "engine": engine},
                "workers": WORKERS,
                "validation_fraction": 0,
                "unit_size_bytes": min(128 << 20, size_bytes // (4 * WORKERS)),
            }
        )
    )


def splintr_alone(folder: Path, output: Path) -> None:
    """The engine's own speed on two cores: texts in memory to ids in memory, two processes."""
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        seconds = pool.map(_splintr_of_file, [(file, folder) for file in sorted(folder.glob("*.jsonl"))])
    (output / "seconds").write_text(str(max(seconds)))


def _splintr_of_file(job: tuple[Path, Path]) -> float:
    os.environ["RAYON_NUM_THREADS"] = "1"
    from pipeline.tokenizer.engine import SplintrEngine

    file, folder = job
    engine = SplintrEngine((folder / "tokenizer.json").read_bytes())
    texts = [json.loads(line)["text"] for line in file.open()]
    started = time.perf_counter()
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        engine.encode(texts[first : first + BATCH_DOCUMENTS])
    return time.perf_counter() - started


def datasets_map(folder: Path, output: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "json", data_files=[str(file) for file in sorted(folder.glob("*.jsonl"))], cache_dir=str(output / "cache")
    )["train"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS_TOKEN)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, eos] for encoding in encodings]}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    rows.map(encode, batched=True, num_proc=WORKERS, remove_columns=rows.column_names, features=features).save_to_disk(
        str(output / "saved")
    )


def datatrove(folder: Path, output: Path) -> None:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder), glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output_folder=str(output / "tokens"),
                tokenizer_name_or_path=str(folder / "tokenizer.json"),
                eos_token=EOS_TOKEN,
                shuffle_documents=False,
            ),
        ],
        tasks=FILES,
        workers=WORKERS,
        logging_dir=str(output / "logs"),
    ).run()


def litdata(folder: Path, output: Path) -> None:
    import litdata as library
    from litdata import TokensLoader

    library.optimize(
        fn=_Tensors(folder / "tokenizer.json"),
        inputs=[str(file) for file in sorted(folder.glob("*.jsonl"))],
        output_dir=str(output / "chunks"),
        chunk_size=2049 * 4096,
        num_workers=WORKERS,
        item_loader=TokensLoader(),
        verbose=False,
    )


class _Tensors:
    """What litdata calls on each file: a tensor of ids a document."""

    def __init__(self, tokenizer: Path) -> None:
        self._path = tokenizer

    def __call__(self, file: str) -> Iterator[Any]:
        import torch

        for ids in _arrays(Path(file), self._path):
            yield torch.from_numpy(ids)


def mosaicml_streaming(folder: Path, output: Path) -> None:
    jobs = [(file, folder, output / file.stem) for file in sorted(folder.glob("*.jsonl"))]
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.map(_write_mds, jobs)


def _write_mds(job: tuple[Path, Path, Path]) -> None:
    from streaming import MDSWriter

    file, folder, output = job
    with MDSWriter(out=str(output), columns={"tokens": "ndarray:uint16"}) as writer:
        for ids in _arrays(file, folder / "tokenizer.json"):
            writer.write({"tokens": ids})


def _arrays(file: Path, tokenizer_path: Path) -> Iterator[np.ndarray[Any, Any]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    eos = tokenizer.token_to_id(EOS_TOKEN)
    texts = [json.loads(line)["text"] for line in file.open()]
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + BATCH_DOCUMENTS], add_special_tokens=False):
            yield np.array([*encoding.ids, eos], dtype=np.uint16)


# by name: the module that it needs, and what runs
CONTENDERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "ours, splintr": ("splintr", lambda folder, output: ours(folder, output, "splintr")),
    "ours, tokenizers": ("tokenizers", lambda folder, output: ours(folder, output, "tokenizers")),
    "splintr alone": ("splintr", splintr_alone),
    "datasets.map": ("datasets", datasets_map),
    "datatrove": ("datatrove", datatrove),
    "litdata": ("litdata", litdata),
    "mosaicml-streaming": ("streaming", mosaicml_streaming),
}


def run_one(name: str, folder: Path) -> None:
    """In a process of its own: prints the seconds and the peak memory of its largest process."""
    module, contender = CONTENDERS[name]
    __import__(module)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        started = time.perf_counter()
        contender(folder, Path(output))
        seconds = time.perf_counter() - started
        told = Path(output) / "seconds"
        if told.exists():
            seconds = float(told.read_text())
    peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_kib * 1024}))


@functools.cache
def can_import(module: str) -> bool:
    """Tried in a process of its own; says why not."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {module} ({done.stderr.strip().splitlines()[-1]})")
    return done.returncode == 0


def measure(name: str, folder: Path) -> dict[str, float]:
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def library_texts() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    texts = [file.read_bytes().decode("utf-8", errors="ignore") for file in files if "site-packages" not in file.parts]
    return [text for text in texts if text.strip()]


def write_corpus(folder: Path, texts: list[str], size_bytes: int) -> int:
    """FILES files of equal size; returns the bytes of text."""
    written = 0
    files = [(folder / f"{index}.jsonl").open("w") for index in range(FILES)]
    while written < size_bytes:
        for index, text in enumerate(texts):
            files[index % FILES].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= size_bytes:
                break
    for file in files:
        file.close()
    return written


def table(folder: Path, wanted: list[str], *, megabytes: int, rounds: int) -> None:
    text_bytes = write_corpus(folder, library_texts(), megabytes * 1_000_000)
    names = [name for name in wanted if can_import(CONTENDERS[name][0])]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(measure(name, folder))
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    print(f"\n{text_bytes / 1e6:,.0f} MB of text, {WORKERS} workers, medians of {rounds} rounds in turn")
    print(f"{'':<20}{'seconds':>9}{'least':>8}{'most':>8}{'MB/s':>8}{'peak MB':>9}", end="")
    ratios = [name for name in names if name.startswith("ours")]
    print("".join(f"{f'÷ {name}':>20}" for name in ratios))
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        peak = max(run["peak_bytes"] for run in runs)
        print(f"{name:<20}{medians[name]:>9.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}", end="")
        print(f"{text_bytes / medians[name] / 1e6:>8.1f}{peak / 1e6:>9.0f}", end="")
        print("".join(f"{medians[name] / medians[other]:>19.2f}x" for other in ratios), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[48], help="sizes of text (default: 48)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="(default: all)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: trained on the text)")
    parser.add_argument("--vocab-size", type=int, default=49_152, help="of the one that is trained")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.contender:
        run_one(settings.contender, settings.folder)
        return
    if settings.tokenizer:
        content = settings.tokenizer.read_bytes()
    else:
        content = train_tokenizer(library_texts(), vocab_size=settings.vocab_size)
    for megabytes in settings.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / "tokenizer.json").write_bytes(content)
            table(Path(temporary), settings.contenders, megabytes=megabytes, rounds=settings.rounds)


if __name__ == "__main__":
    main()
