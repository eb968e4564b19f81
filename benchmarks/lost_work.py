"""What a `kill -9` costs: the work of the units that were under way, with all filters and all deduplication on.

    python benchmarks/lost_work.py --megabytes 100 --kills 10

A run of two workers and units of the default size is killed at random moments and started again, until it has been
killed as often as asked in each of the passes over the text, signing and encoding. A worker begins a unit when one of
the last records was written, so what is lost can be told from the times of the files: of each worker, the seconds from
that record to the kill.

The text is prose of real sentences (of the docstrings of the standard library and the descriptions of installed
packages), because a document that every filter lets through costs the most. Beside the seconds of the clock stand
those of the processor, which are fewer on a machine that does something else besides: the clock's, times the share
that the workers had of a core. `--engine tokenizers` is the slower one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from configs.load import dump
from pipeline.config import PipelineConfig
from pipeline.plan import make_plan
from pipeline.tokenizer.train import train_tokenizer

WORKERS = 2
POLL_S = 0.02
SIGNED = ".work/deduplication/signatures/?????.json"
ENCODED = ".work/units/?????.json"
FILTERS = (
    {"type": "unicode"},
    {"type": "url", "words": ["casino"]},
    {"type": "language", "languages": ["en"]},
    {"type": "gopher_quality"},
    {"type": "gopher_repetition"},
    {"type": "c4"},
    {"type": "fineweb"},
    {"type": "code"},
    {"type": "pii"},
    {"type": "length", "min_characters": 50},
)


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one worker by one kill, by the clock and of the processor."""

    seconds: float
    cpu_s: float


def sentences() -> list[str]:
    found: set[str] = set()
    library = Path(sysconfig.get_path("stdlib"))
    packages = Path(sysconfig.get_path("purelib")).glob("*/METADATA")
    for path in chain(packages, library.glob("*.py"), library.glob("[a-su-z]*/*.py")):
        text = " ".join(path.read_text(encoding="utf-8", errors="ignore").split())
        found.update(re.findall(r"[A-Z][a-z]+(?: [A-Za-z,;']+){6,40}\.", text))
    return sorted(found)


def write_corpus(path: Path, *, size_bytes: int) -> list[str]:
    """Documents of two to eight paragraphs; returns the sentences that they are made of."""
    draw = random.Random(1)
    known = sentences()
    written = number = 0
    with path.open("w") as file:
        while written < size_bytes:
            paragraphs = (" ".join(draw.choices(known, k=draw.randint(3, 8))) for _ in range(draw.randint(2, 8)))
            record = {"text": "\n".join(paragraphs), "url": f"https://example.org/{number}"}
            written += file.write(json.dumps(record) + "\n")
            number += 1
    return known


def make_config(folder: Path, *, engine: str) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "lost-work",
            "output_dir": folder / "dataset",
            "sources": [{"name": "text", "type": "jsonl", "files": [str(folder / "text.jsonl")], "id_field": "url"}],
            "tokenizer": {"path": folder / "tokenizer.json", "engine": engine},
            "filters": FILTERS,
            "deduplication": {"exact": {}, "minhash": {}, "paragraphs": {"min_characters": 100}},
            "workers": WORKERS,
        }
    )


def times_of(dataset: Path, records: str) -> list[float]:
    return sorted(path.stat().st_mtime for path in dataset.glob(records))


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []


def share_of_a_core(run: subprocess.Popen[bytes]) -> float | None:
    """That the workers have had since they began; None if they have ended.

    They are forked off a template, and that off a server, which is the run's child.
    """
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    now_s = float(Path("/proc/uptime").read_text().split()[0])
    used_s = there_s = 0.0
    templates = (template for server in children_of(run.pid) for template in children_of(server))
    for worker in (worker for template in templates for worker in children_of(template)):
        try:
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        used_s += (int(fields[11]) + int(fields[12])) / ticks_per_s
        there_s += now_s - int(fields[19]) / ticks_per_s
    return used_s / there_s if there_s else None


def kill_in_a_pass(config_file: Path, dataset: Path, records: str, *, delay_s: float) -> list[Loss] | None:
    """What each worker lost; None if the pass was over before."""
    done_before = len(times_of(dataset, records))
    log_file = config_file.with_name("log")
    with log_file.open("wb") as log:
        run = subprocess.Popen([sys.executable, "-m", "pipeline", "run", str(config_file)], stdout=log, stderr=log)
    # both workers have begun a unit of this attempt once it has done two
    while run.poll() is None and len(times_of(dataset, records)) < done_before + WORKERS:
        time.sleep(POLL_S)
    deadline = time.monotonic() + delay_s
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if run.poll() is not None:
        if run.returncode:
            sys.exit(f"the run failed:\n{log_file.read_text()[-2000:]}")
        return None
    killed, share = time.time(), share_of_a_core(run)
    run.kill()
    run.wait()
    is_over = records == SIGNED and any(dataset.glob(".work/deduplication/links/*"))
    begun = [written for written in times_of(dataset, records) if written < killed][-WORKERS:]
    if is_over or share is None or (dataset / "manifest.json").exists():
        return None
    return [Loss(killed - written, (killed - written) * share) for written in begun]


def losses(config_file: Path, config: PipelineConfig, records: str, *, kills: int) -> Iterator[list[Loss]]:
    """Of so many kills in a pass; the dataset begins anew when the pass is over."""
    draw = random.Random(2)
    while kills:
        lost = kill_in_a_pass(config_file, config.output_dir, records, delay_s=draw.uniform(0, 10))
        if lost is None:
            remove(config, records)
            continue
        kills -= 1
        yield lost


def remove(config: PipelineConfig, records: str) -> None:
    if records == SIGNED or (config.output_dir / "manifest.json").exists():
        shutil.rmtree(config.output_dir)
        return
    for path in config.output_dir.glob(records):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10, help="in each pass")
    parser.add_argument("--engine", choices=("splintr", "tokenizers"), default="splintr")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = write_corpus(folder / "text.jsonl", size_bytes=arguments.megabytes * 1_000_000)
        (folder / "tokenizer.json").write_bytes(train_tokenizer(known, vocab_size=4096))
        config = make_config(folder, engine=arguments.engine)
        (folder / "config.yaml").write_text(dump(config))
        plan = make_plan(config)
        mean_mb = plan.size_bytes / len(plan.units) / 1e6
        print(f"{len(plan.units)} units of {mean_mb:.1f} MB, {WORKERS} workers, engine {arguments.engine}")
        for what, records in (("signing", SIGNED), ("encoding", ENCODED)):
            found = losses(folder / "config.yaml", config, records, kills=arguments.kills)
            lost = [loss for of_workers in found for loss in of_workers]
            seconds, cpu_s = [loss.seconds for loss in lost], [loss.cpu_s for loss in lost]
            print(
                f"{what:9} {arguments.kills} kills, lost of a worker: processor median {statistics.median(cpu_s):.1f}, "
                f"most {max(cpu_s):.1f} s; clock median {statistics.median(seconds):.1f}, most {max(seconds):.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
