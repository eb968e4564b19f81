"""Deduplication: MinHash signatures beside datatrove's, exact duplicates a core, and a million documents in memory.

    python benchmarks/deduplication.py --peer-python VENV/bin/python --rounds 5
    python benchmarks/deduplication.py --documents 1000000

Signatures: the same texts in memory, words, n-grams, 14 bands of 8 and their files on disk, in turn, one process each;
CPU seconds, without the start of the interpreter and without the first texts. The texts are the standard library's
sources in parts of 3,000 characters, or those of a JSONL file (`--texts`). The peer runs in an environment of its own
(`pip install datatrove nltk spacy 'xxhash<4'`: it fails with xxhash 4).

Exact: texts in memory to links on disk. Memory: `--documents` short ones from JSONL to verdicts, two workers, with
exact and MinHash; a fifth are copies of an earlier one, and a fifth differ from one in a word of forty.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import ArrayFileWriter
from pipeline.deduplication.config import DeduplicationConfig
from pipeline.deduplication.folder import Folder, UnitRows
from pipeline.deduplication.matching import Matcher, Part
from pipeline.deduplication.passes import deduplicate
from pipeline.deduplication.signatures import UnitSigner
from pipeline.document import Document
from pipeline.plan import make_plan

PART_CHARACTERS = 3000
WARM_UP_TEXTS = 20
UNIT_BYTES = 64 << 20

PEER = """
import json, sys, tempfile, time
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

documents = [Document(text=json.loads(line)["text"], id=str(number)) for number, line in enumerate(open(sys.argv[1]))]
warm_up = int(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    for name, some in (("warm", documents[:warm_up]), ("measured", documents[warm_up:])):
        started = time.process_time()
        list(MinhashDedupSignature(output_folder=f"{folder}/{name}", config=MinhashConfig()).run(some) or ())
        seconds = time.process_time() - started
print(len(documents) - warm_up, seconds)
"""


def library_texts(count: int) -> list[str]:
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        texts += [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
        if len(texts) >= count:
            break
    return [text for text in texts[:count] if text.strip()]


def our_signatures(file: Path) -> float:
    """Documents a CPU second."""
    texts = [json.loads(line)["text"] for line in file.open()]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    config = DeduplicationConfig.model_validate({"minhash": {}})
    with tempfile.TemporaryDirectory() as folder:
        for some in (documents[:WARM_UP_TEXTS], documents[WARM_UP_TEXTS:]):
            started = time.process_time()
            sign(UnitSigner(config, search=None), some, Path(folder) / "signatures.arrow")
            seconds = time.process_time() - started
    return (len(documents) - WARM_UP_TEXTS) / seconds


def sign(signer: UnitSigner, documents: list[Document], path: Path) -> None:
    with ArrayFileWriter(path) as writer:
        for section in signer.sign(documents):
            writer.append(**section.arrays)


def peer_signatures(peer_python: str, file: Path) -> float:
    """Documents a CPU second."""
    done = subprocess.run([peer_python, "-c", PEER, file, str(WARM_UP_TEXTS)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{peer_python} cannot run datatrove's signatures: {done.stderr.strip()[-200:]}")
    documents, seconds = done.stdout.split()[-2:]
    return int(documents) / float(seconds)


def compare_signatures(texts: list[str], *, peer_python: str, rounds: int) -> None:
    runs: dict[str, Callable[[Path], float]] = {"ours": our_signatures}
    if subprocess.run([peer_python, "-c", "import datatrove"], capture_output=True).returncode:
        print(f"left out: datatrove ({peer_python} has none; see --peer-python)")
    else:
        runs["datatrove"] = lambda file: peer_signatures(peer_python, file)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(rounds):
            for name, run in runs.items():
                speeds[name].append(run(file))
    characters = statistics.mean(map(len, texts))
    print(f"MinHash signatures, {len(texts):,} texts of {characters:,.0f} characters, {rounds} rounds")
    ours = statistics.median(speeds["ours"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        print(
            f"  {name:10s} {middle:10,.0f} documents/s a core  ({min(found):,.0f} to {max(found):,.0f})"
            f"  ours is {ours / middle:.1f} times as fast"
        )


def exact_speed(texts: list[str], *, size_bytes: int) -> float:
    """Megabytes a CPU second, from texts to links."""
    documents: list[Document] = []
    total = 0
    while total < size_bytes:
        # no two alike but every tenth
        number = len(documents)
        text = f"{number - number % 10 // 9} {texts[number % len(texts)]}"
        documents.append(Document(str(number), text))
        total += len(text.encode())
    config = DeduplicationConfig.model_validate({"exact": {}})
    with tempfile.TemporaryDirectory() as dataset:
        folder = Folder(Path(dataset))
        folder.make()
        per_unit = max(1, len(documents) * UNIT_BYTES // total)
        started = time.process_time()
        units = []
        for index, start in enumerate(range(0, len(documents), per_unit)):
            of_unit = documents[start : start + per_unit]
            sign(UnitSigner(config, search=None), of_unit, folder.signature(index))
            units.append(UnitRows(index, documents=len(of_unit), paragraphs=0))
        Matcher(folder, units).link_documents(Part("exact", 0, 1))
        return total / 1e6 / (time.process_time() - started)


def bounded_memory(count: int) -> None:
    draw = random.Random(5)
    words = [f"{first}{second}{third}" for first in "bdfgklmn" for second in ("a", "e", "io") for third in "rstvxz"]
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        planted = {"exact": 0, "near": 0}
        recent: list[list[str]] = []
        with corpus.open("w") as file:
            for _ in range(count):
                kind = draw.random()
                text = draw.choices(words, k=40)
                if recent and kind < 0.2:
                    text = draw.choice(recent)
                    planted["exact"] += 1
                elif recent and kind < 0.4:
                    text = list(draw.choice(recent))
                    text[-1] = f"{text[-1]}changed{draw.random()}"
                    planted["near"] += 1
                elif len(recent) < 10_000:
                    recent.append(text)
                file.write(json.dumps({"text": " ".join(text)}) + "\n")
        config = PipelineConfig.model_validate(
            {
                "name": "benchmark",
                "output_dir": Path(name) / "dataset",
                "sources": [{"name": "text", "type": "jsonl", "files": [str(corpus)]}],
                "tokenizer": {"path": "unused"},
                "deduplication": {"exact": {}, "minhash": {}},
                "workers": 2,
            }
        )
        config.output_dir.mkdir()
        started = time.perf_counter()
        before = time.process_time()  # this process has made the texts too
        with ProcessWatch() as watch:
            deduplicate(config, make_plan(config))
        seconds, cpu = time.perf_counter() - started, watch.cpu_seconds - before
        peaks_kb = watch.peak_kb
        report: dict[str, Any] = json.loads((config.output_dir / "deduplication.json").read_bytes())
        spilled = sum(path.stat().st_size for path in Folder(config.output_dir).signatures.glob("*.arrow"))
        print(
            f"{count:,} documents of 40 words ({corpus.stat().st_size / 1e6:,.0f} MB), exact and MinHash, two workers"
        )
        print(f"  {count / cpu:,.0f} documents/s a core (CPU), {count / seconds:,.0f} documents/s (wall)")
        parent_mb, worker_mb = peaks_kb.pop(os.getpid()) / 1e3, max(peaks_kb.values()) / 1e3
        print(f"  peak memory: parent {parent_mb:,.0f} MB, largest worker {worker_mb:,.0f} MB; ", end="")
        print(f"signatures on disk {spilled / 1e6:,.0f} MB")
        print(
            f"  planted: {planted}; dropped: {report['dropped']}; largest cluster: {max(map(int, report['clusters']))}"
        )


class ProcessWatch:
    """Peak memory and CPU seconds of this process and all below it, from /proc: workers are forked off a server."""

    def __init__(self) -> None:
        self.peak_kb: dict[int, int] = {}
        self._ticks: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            waiting = [os.getpid()]
            while waiting:
                pid = waiting.pop()
                with contextlib.suppress(OSError, StopIteration):  # it has ended
                    status = Path(f"/proc/{pid}/status").read_text().splitlines()
                    self.peak_kb[pid] = int(next(line for line in status if line.startswith("VmHWM")).split()[1])
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self._ticks[pid] = int(fields[11]) + int(fields[12])
                    for children in Path(f"/proc/{pid}/task").glob("*/children"):
                        waiting += map(int, children.read_text().split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has datatrove, nltk, spacy")
    parser.add_argument("--texts", type=Path, help="JSONL with a field text (default: the standard library's sources)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exact-megabytes", type=int, default=200)
    parser.add_argument("--documents", type=int, default=100_000, help="for the run in bounded memory; 0: none")
    arguments = parser.parse_args()
    if arguments.documents:
        bounded_memory(arguments.documents)  # first: a peak is of the whole life of a process
    texts = library_texts(1000)
    if arguments.texts is not None:
        texts = [json.loads(line)["text"] for line in arguments.texts.open()]
    compare_signatures(texts, peer_python=arguments.peer_python, rounds=arguments.rounds)
    speeds = [exact_speed(texts, size_bytes=arguments.exact_megabytes * 1_000_000) for _ in range(arguments.rounds)]
    print(
        f"exact duplicates, {arguments.exact_megabytes} MB of texts: {statistics.median(speeds):,.0f} MB/s a core "
        f"({min(speeds):,.0f} to {max(speeds):,.0f})"
    )


if __name__ == "__main__":
    sys.exit(main())
