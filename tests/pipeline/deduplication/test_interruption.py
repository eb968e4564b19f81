"""Whole runs with deduplication: by any number of workers, and killed in each pass. Real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.config import PipelineConfig
from pipeline.run import run
from pipeline.shards.format import read_manifest

ROOT = Path(__file__).resolve().parents[3]
MakeConfig = Callable[..., PipelineConfig]

FREE = ("report.json", "report.html", "status.json", ".lock")


def digests(dataset: Path) -> dict[str, str]:
    """Of all that must not depend on how the run went."""
    return {
        file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(dataset.rglob("*"))
        if file.is_file() and file.name not in FREE
    }


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> MakeConfig:
    """`make(output_dir, workers=…)`: a config of about 30 units that deduplicates in every way."""
    folder = tmp_path_factory.mktemp("input")
    draw = random.Random(7)
    words = [f"{first}{second}" for first in ("al", "be", "ga", "de", "ep") for second in "abcdefghijklmnopqrst"]
    texts: list[str] = []
    for number in range(300):
        texts.append("\n".join(" ".join(draw.choices(words, k=30)) for _ in range(draw.randint(1, 4))))
        earlier = draw.choice(texts)
        if number % 3 == 0:
            texts.append(draw.choice((earlier, earlier + " and more", earlier.split("\n")[-1])))
    texts.insert(100, "Here it is: what is the airspeed velocity of an unladen swallow? Nobody knows, they say.")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "exam.jsonl").write_text('{"q": "What is the airspeed velocity of an unladen swallow?"}\n')
    exam = {"name": "exam", "type": "jsonl", "files": [str(folder / "exam.jsonl")], "text_field": "q"}
    return lambda output_dir, *, workers: PipelineConfig.model_validate(
        {
            "name": "test",
            "output_dir": output_dir,
            "sources": [{"name": "corpus", "type": "jsonl", "files": [str(folder / "a.jsonl")]}],
            "tokenizer": {"path": tokenizer_file},
            "validation_fraction": 0.2,
            "unit_size_bytes": 7000,
            "workers": workers,
            "deduplication": {
                "exact": {},
                "minhash": {},
                "paragraphs": {"min_characters": 30},
                "decontamination": {"evaluations": [exam], "ngram_words": 8},
            },
        }
    )


@pytest.fixture(scope="module")
def whole(make: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset by one worker, without interruption."""
    dataset = tmp_path_factory.mktemp("output") / "whole"
    run(make(dataset, workers=1))
    return dataset


def test_every_document_is_accounted_for(whole: Path) -> None:
    manifest = read_manifest(whole)
    dropped = {reason: record.documents for reason, record in manifest.dropped.items()}
    assert dropped.keys() == {"contaminated", "duplicate_paragraphs", "exact_duplicate", "near_duplicate"}
    assert (
        manifest.documents_in
        == 401
        == sum(split.documents for split in manifest.splits.values()) + sum(dropped.values())
    )
    report = json.loads((whole / "deduplication.json").read_bytes())
    assert report["documents"] == manifest.documents_in
    assert report["dropped"] == {reason: dropped[reason] for reason in report["dropped"]}
    (line,) = (whole / "contaminated.jsonl").read_text().splitlines()
    assert json.loads(line)["ngram"] == "what is the airspeed velocity of an unladen"


def test_bytes_do_not_depend_on_the_number_of_workers(make: MakeConfig, whole: Path, tmp_path: Path) -> None:
    run(make(tmp_path / "of-3", workers=3))
    assert digests(tmp_path / "of-3") == digests(whole)
    assert {"contaminated.jsonl", "deduplication.json"} < digests(whole).keys()


def start(config_file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(config_file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def a_worker_of(process: subprocess.Popen[str]) -> int | None:
    """A child of the template, which is one of the server, which is one of the run; None if that has ended."""
    while process.poll() is None:
        for server in children_of(process.pid):
            for template in children_of(server):
                for worker in children_of(template):
                    return worker
        time.sleep(0.002)
    return None


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []


def wait_for(count: int, files: str, process: subprocess.Popen[str], dataset: Path) -> None:
    """Until there are so many of the files, or the run has ended."""
    while process.poll() is None and len(list(dataset.glob(files))) < count:
        time.sleep(0.002)


SIGNED = ".work/deduplication/signatures/*.json"
LINKED = ".work/deduplication/links/*.arrow"
VERDICTS = ".work/deduplication/verdicts.arrow"


def kill_a_worker_in_the_first_pass(config_file: Path, dataset: Path) -> bool:
    """And then the run; whether it had noticed the first, and neither came too late."""
    process = start(config_file)
    wait_for(3, SIGNED, process, dataset)
    if worker := a_worker_of(process):
        os.kill(worker, signal.SIGKILL)
    wait_for(9, SIGNED, process, dataset)
    process.kill()
    _, stderr = process.communicate()
    return "was killed by SIGKILL while doing unit" in stderr and not any(dataset.glob(LINKED))


def kill_in_a_pass(config_file: Path, dataset: Path, *, files: str, count: int, end: str) -> bool:
    """Kill the run when so many of the files are there; whether that was before the pass's end, the file `end`."""
    process = start(config_file)
    wait_for(count, files, process, dataset)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL and not any(dataset.glob(end))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_in_each_pass_it_ends_with_the_same_bytes(make: MakeConfig, whole: Path, tmp_path: Path) -> None:
    config = make(tmp_path / "killed", workers=2)
    dataset = config.output_dir
    config_file = tmp_path / "config.yaml"
    config_file.write_text(dump(config))
    # on a busy machine a pass may be over before we look: then all are tried again from the start
    for _ in range(5):
        if (
            kill_a_worker_in_the_first_pass(config_file, dataset)
            and kill_in_a_pass(config_file, dataset, files=LINKED, count=2, end=VERDICTS)
            and kill_in_a_pass(config_file, dataset, files=".work/units/*.json", count=3, end="manifest.json")
        ):
            break
        shutil.rmtree(dataset)
    else:
        pytest.fail("in 5 attempts some pass was over each time before it could be killed")
    process = start(config_file)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert digests(dataset) == digests(whole)
    assert not (dataset / ".work").exists()
