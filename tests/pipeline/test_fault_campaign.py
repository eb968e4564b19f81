"""At least 100 random kills of drivers, workers and nodes over all executors: `make test-data-faults`, some 15 minutes.

Each trial makes one dataset. Something is killed at random moments until the trial has had its share; then it is left
to finish. Afterwards every byte must equal those of an undisturbed run, and no unit that was done before a kill may
have been done again. Prints what was killed, and in the middle of what.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.load import dump
from pipeline.config import PipelineConfig
from pipeline.shards.format import read_manifest
from pipeline.shards.verify import verify_dataset

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]

UNITS = 16
KILLS_A_TRIAL = 8
# in all 112
SERIAL_KILLS, LOCAL_KILLS, RAY_KILLS, SHARD_KILLS = 16, 56, 32, 8

# a kill comes so long after the start or the kill before it; the upper bound is a small part of an undisturbed run
DELAY_S = (0.0, 1.5)

# of the starts, this share is left alone until it is doing units; the others may be hit while they begin
SHARE_AT_WORK = 0.75


@dataclass
class Kills:
    """What was killed, by victim, and what it was at."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def trials(self, total: int) -> Iterator[tuple[int, int]]:
        """Until there are so many: the number of a trial, and how many kills it is to have. A run may end before."""
        for number in itertools.count():
            left = total - self.counts.total()
            if left == 0:
                return
            yield number, min(KILLS_A_TRIAL, left)

    def report(self, executor: str) -> None:
        print(f"\n{executor}: {self.counts.total()} kills")
        for (victim, when), count in sorted(self.counts.items()):
            print(f"  {victim:<7} {when:<24} {count:4d}")


def moment(dataset: Path) -> str:
    if (dataset / "manifest.json").exists():
        return "after the manifest"
    if list(dataset.rglob(".data-*.partial")):
        return "in the middle of units"
    done = len(list(dataset.glob(".work/units/*.json")))
    return "before the first unit" if done == 0 else "between units" if done < UNITS else "at the end"


def digests(dataset: Path) -> dict[str, str]:
    return {
        file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(dataset.rglob("*"))
        if file.is_file() and file.name not in ("report.json", "report.html", "status.json", ".lock")
    }


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="faults"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def config_file(
    folder: Path, make_texts: Callable[..., list[str]], make_jsonl: Callable[[Path, Sequence[str]], Path]
) -> Path:
    """A unit a file, each of about a second's work with the slower engine; some documents are dropped."""
    for part in range(UNITS):
        texts = make_texts(1500, seed=part, words=400)
        make_jsonl(folder / "corpus" / f"{part:02d}.jsonl", [*texts, "", " ", *texts[:10]])
    config = PipelineConfig.model_validate(
        {
            "name": "faults",
            "output_dir": folder / "none",
            "sources": [{"name": "corpus", "type": "jsonl", "files": [f"{folder}/corpus/*.jsonl"]}],
            "tokenizer": {"train": {"vocab_size": 400, "sample_bytes": 300_000}, "engine": "tokenizers"},
            "validation_fraction": 0.1,
            "unit_size_bytes": 4_000_000,
            "shard_size_bytes": 200_000,
            "workers": None,
        }
    )
    path = folder / "config.yaml"
    path.write_text(dump(config))
    return path


@dataclass
class Trial:
    """A dataset, and the command that makes it."""

    config_file: Path
    dataset: Path
    overrides: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    shard: str | None = None

    @property
    def status_file(self) -> Path:
        if self.shard is None:
            return self.dataset / "status.json"
        return self.dataset / ".work" / "shards" / f"{self.shard.replace('/', '-of-')}.json"

    def start(self) -> subprocess.Popen[str]:
        shard = ["--shard", self.shard] if self.shard else []
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pipeline", "run", *shard, str(self.config_file)),
                *(f"output_dir={self.dataset}", *self.overrides),
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def commit(self) -> None:
        command = [sys.executable, "-m", "pipeline", "commit", str(self.config_file), f"output_dir={self.dataset}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def whole(folder: Path, config_file: Path) -> dict[str, str]:
    """The bytes of an undisturbed run."""
    trial = Trial(config_file, folder / "whole", ("executor=serial",))
    started = time.monotonic()
    _, stderr = (process := trial.start()).communicate()
    assert process.returncode == 0, stderr
    print(f"\nundisturbed, serial: {time.monotonic() - started:.1f} s")
    return digests(trial.dataset)


Kill = Callable[[subprocess.Popen[str]], str | None]


def kill_driver(process: subprocess.Popen[str]) -> str | None:
    process.kill()
    process.wait()
    return "driver"


def kill_local_worker(process: subprocess.Popen[str], *, draw: random.Random) -> str | None:
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "multiprocessing" in (command := " ".join(child.cmdline()))
        and "resource_tracker" not in command
        and child.ppid() != process.pid  # the server; what is forked off it is a template or a worker
    ]
    return kill_one(workers, draw=draw)


def kill_one(workers: Sequence[psutil.Process], *, draw: random.Random) -> str | None:
    if not workers:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        draw.choice(workers).send_signal(signal.SIGKILL)
        return "worker"
    return None


def endure(trial: Trial, choose: Callable[[], Kill], kills: Kills, *, count: int, draw: random.Random) -> None:
    """Start the run again and again until it has been hit `count` times and has then finished."""
    hits = 0
    done_before: dict[Path, int] = {}
    while True:
        process = trial.start()
        if hits < count and draw.random() < SHARE_AT_WORK:
            wait_for_work(process, trial.status_file)
        while hits < count:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(*DELAY_S))
                break
            with contextlib.suppress(psutil.NoSuchProcess):
                before = finished_shards(trial.dataset)
                when = moment(trial.dataset)
                if (victim := choose()(process)) is not None:
                    kills.counts[victim, when] += 1
                    hits += 1
                    done_before |= before
            if process.poll() is not None:
                break
        _, stderr = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        # killed, or a unit was unlucky three times
        assert process.returncode == -signal.SIGKILL or "units that killed 3 workers each" in stderr, stderr
    for path, changed_ns in done_before.items():
        assert path.stat().st_mtime_ns == changed_ns, f"{path} was done again"


def wait_for_work(process: subprocess.Popen[str], status_file: Path) -> None:
    """Until the run has begun with its units, or has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            status = json.loads(status_file.read_bytes())
            if (status["pid"], status["phase"]) == (process.pid, "units"):
                return
        time.sleep(0.02)


def finished_shards(dataset: Path) -> dict[Path, int]:
    """Shards of units that have a record, and when they were written."""
    units = {record.stem for record in dataset.glob(".work/units/*.json")}
    return {path: path.stat().st_mtime_ns for path in dataset.rglob("data-*.arrow") if path.name.split("-")[1] in units}


def check(dataset: Path, whole: dict[str, str]) -> None:
    assert digests(dataset) == whole
    assert verify_dataset(dataset, threads=2) == []
    assert not list(dataset.rglob("*.partial"))
    manifest = read_manifest(dataset)
    kept = sum(split.documents for split in manifest.splits.values())
    dropped = sum(record.documents for record in manifest.dropped.values())
    assert (manifest.documents_in, dropped) == (UNITS * 1512, UNITS * 2)
    assert kept + dropped == manifest.documents_in
    assert json.loads((dataset / "status.json").read_bytes())["state"] == "finished"


def test_serial(folder: Path, config_file: Path, whole: dict[str, str]) -> None:
    draw, kills = random.Random(1), Kills()
    for number, count in kills.trials(SERIAL_KILLS):
        trial = Trial(config_file, folder / f"serial-{number}", ("executor=serial",))
        endure(trial, lambda: kill_driver, kills, count=count, draw=draw)
        check(trial.dataset, whole)
    kills.report("serial")


def test_local(folder: Path, config_file: Path, whole: dict[str, str]) -> None:
    draw, kills = random.Random(2), Kills()

    def choose() -> Kill:
        return kill_driver if draw.random() < 0.4 else lambda process: kill_local_worker(process, draw=draw)

    for number, count in kills.trials(LOCAL_KILLS):
        trial = Trial(config_file, folder / f"local-{number}", ("executor=local", f"workers={2 + number % 2}"))
        endure(trial, choose, kills, count=count, draw=draw)
        check(trial.dataset, whole)
    kills.report("local")


def test_ray(folder: Path, config_file: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    (folder / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "ray"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    draw, kills = random.Random(3), Kills()

    def kill_worker(process: subprocess.Popen[str]) -> str | None:
        descendants = psutil.Process().children(recursive=True)
        return kill_one([child for child in descendants if "ray::_do" in child.name()], draw=draw)

    def kill_node(process: subprocess.Popen[str]) -> str | None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**node)
        return "node"

    def choose() -> Kill:
        return draw.choices([kill_driver, kill_worker, kill_node], weights=[4, 5, 1])[0]

    try:
        for number, count in kills.trials(RAY_KILLS):
            trial = Trial(
                config_file, folder / f"ray-{number}", ("executor=ray",), environment={"RAY_ADDRESS": cluster.address}
            )
            endure(trial, choose, kills, count=count, draw=draw)
            check(trial.dataset, whole)
    finally:
        cluster.shutdown()
    kills.report("ray, two nodes")


def test_shards(folder: Path, config_file: Path, whole: dict[str, str]) -> None:
    draw, kills = random.Random(4), Kills()
    for number, count in kills.trials(SHARD_KILLS):
        dataset = folder / f"shards-{number}"
        shards = [Trial(config_file, dataset, ("executor=serial",), shard=f"{index}/2") for index in range(2)]
        for index, trial in enumerate(shards):
            endure(trial, lambda: kill_driver, kills, count=(count + index) // 2, draw=draw)
        shards[0].commit()
        check(dataset, whole)
    kills.report("shards, serial")
