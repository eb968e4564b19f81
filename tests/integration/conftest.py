"""A tiny dataset written through the contract and a tiny run over it, for tests that start real ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from checkpoint.events import Event, events_file, read_events
from launch.cluster.launcher import free_port
from pipeline.shards import format as contract

ROOT = Path(__file__).resolve().parents[2]
RECORDED_TRAIN = Path(__file__).with_name("recorded_train.py")
STEPS = 30
SETTINGS = {
    "steps": STEPS,
    "schedule": {"name": "wsd", "warmup_steps": 3, "decay_steps": 10},
    "checkpoint": {"every_steps": 10},
    "validation": {"every_steps": 15, "sequences": 21},
    "logging": {"every_steps": 10, "system_every_s": 0},
    "launcher": {"ranks_per_node": 2},
}


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and words, and the run's event log up to then."""

    run: Path
    code: int
    out: str
    err: str
    events: tuple[Event, ...]

    def metric(self, key: str) -> dict[int, float]:
        """By step; of a step that was told twice, the last telling."""
        return {event.step: event.fields[key] for event in self.events if key in event.fields}

    def states(self) -> list[str]:
        return [event.fields["state"] for event in self.events if event.kind == "state"]


@dataclass(frozen=True)
class Started:
    """A run that is going on: its folder and the process that the user started."""

    run: Path
    process: subprocess.Popen[str]

    def wait_for_step(self, step: int, *, timeout_s: float = 200) -> None:
        self.wait_for(
            lambda: any("train/loss" in event.fields and event.step >= step for event in _events(self.run)),
            what=f"step {step}",
            timeout_s=timeout_s,
        )

    def wait_for_checkpoint(self, step: int, *, timeout_s: float = 200) -> None:
        """Told as complete, some steps after the save began."""
        self.wait_for(
            lambda: any(event.kind == "checkpoint" and event.step >= step for event in _events(self.run)),
            what=f"the checkpoint of step {step}",
            timeout_s=timeout_s,
        )

    def wait_for(self, condition: Callable[[], bool], *, what: str, timeout_s: float = 200) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline_s, f"{what} did not come"
            time.sleep(0.01)

    def rank_pid(self, rank: int) -> int:
        """Of the newest attempt, as the rank's log says."""
        log = (self.run / "logs" / f"rank-{rank}.log").read_text()
        return int(re.findall(r"^--- attempt of .+, process (\d+) ---$", log, flags=re.MULTILINE)[-1])

    def end(self, *, timeout_s: float = 250) -> Ended:
        """Wait for the command to end."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return Ended(self.run, self.process.returncode, out, err, tuple(_events(self.run)))


def _events(run: Path) -> list[Event]:
    return [event for event, _ in read_events(events_file(run))]


StartTraining = Callable[..., Started]


@dataclass(frozen=True)
class Commands:
    """`smollm2` as a user runs it, in a folder of the test's own."""

    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # one thread a rank: two ranks share two cores
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "configs.command", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> str:
        """What it printed; it must exit with 0."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode == 0, out + err
        return out


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="session")
def chain_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in which the next id follows from the last in nine of ten cases: 255 ids, learnt in a few steps."""
    dataset = tmp_path_factory.mktemp("chain")
    tokenizer = dataset / contract.TOKENIZER_FILE
    tokenizer.write_text(json.dumps({"made_for": "tests"}))
    random = np.random.default_rng(0)
    splits = {
        "train": _write_split(dataset, "train", [_chain(random) for _ in range(800)]),
        "validation": _write_split(dataset, "validation", [_chain(random) for _ in range(60)]),
    }
    record = contract.TokenizerRecord(digest=contract.digest_file(tokenizer), vocab_size=256, eos_token_id=0)
    manifest = contract.DatasetManifest(
        name="chain", tokenizer=record, splits=splits, documents_in=860, text_bytes_kept=0, config_digest=""
    )
    contract.write_manifest(dataset, manifest)
    return dataset


@pytest.fixture(scope="session")
def write_config(
    tmp_path_factory: pytest.TempPathFactory, chain_dataset: Path, tiny_config: Callable[..., str]
) -> Callable[[Path], Path]:
    """The config of the tiny run in a folder, as a file."""

    def write(run: Path) -> Path:
        config = tmp_path_factory.mktemp("config") / "tiny.yaml"
        config.write_text(tiny_config(run, {"chain": chain_dataset}, **SETTINGS))
        return config

    return write


@pytest.fixture(scope="session")
def train_on_ranks(write_config: Callable[[Path], Path], run_ranks: Callable[..., Any]) -> Callable[..., Ended]:
    """`train_on_ranks(3, run, "key=value", …)`: the tiny run on so many ranks without a launcher; what each of them
    trained on is written to `records`, if that is given."""

    def train(ranks: int, run: Path, *overrides: str, records: Path | None = None) -> Ended:
        program, variables = ["-m", "launch.train"], {}
        if records is not None:
            records.mkdir()
            program, variables = [str(RECORDED_TRAIN)], {"RECORDS": records}
        ended = run_ranks(ranks, *program, write_config(run), *overrides, check=False, **variables)
        # a rank that fails has a code above 0, and those that it leaves alone are killed
        code = max((rank.returncode for rank in ended), key=lambda code: (code > 0, -code))
        return Ended(run, code, ended[0].stdout, "".join(rank.stderr for rank in ended), tuple(_events(run)))

    return train


@pytest.fixture(scope="session")
def start_training(write_config: Callable[[Path], Path]) -> StartTraining:
    """`start_training(run, "key=value", …, by_hand=False)`: the tiny run in folder `run`, as a user would start it;
    with `records` by hand on so many `ranks`, and what each of them trained on is written there."""

    def start(
        run: Path, *overrides: str, by_hand: bool = False, ranks: int = 2, records: Path | None = None
    ) -> Started:
        config = write_config(run)
        deepspeed = [str(Path(sys.executable).with_name("deepspeed")), f"--num_gpus={ranks}"]
        deepspeed.append(f"--master_port={free_port()}")
        command = [*deepspeed, "--module", "launch.train"] if by_hand else [sys.executable, "-m", "launch", "train"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        if records is not None:
            records.mkdir()
            command = [*deepspeed, str(RECORDED_TRAIN)]
            environment |= {"RECORDS": str(records), "PYTHONPATH": str(ROOT)}
        # ninja and deepspeed stand beside the interpreter
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        process = subprocess.Popen(
            [*command, str(config), *overrides],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Started(run, process)

    return start


@pytest.fixture(scope="session")
def chain() -> Callable[[np.random.Generator], list[int]]:
    """`chain(random)`: one document."""
    return _chain


@pytest.fixture(scope="session")
def write_split() -> Callable[[Path, contract.Split, list[list[int]]], contract.SplitRecord]:
    """`write_split(dataset, "train", documents)`: one shard of documents named `train-0`, `train-1`, …"""
    return _write_split


@pytest.fixture(scope="session")
def run_one_rank(run_ranks: Callable[..., Any]) -> Callable[[str, dict[str, Any], Path], dict[str, Any]]:
    """`run_one_rank("x_rank.py", job, folder)`: a script of this folder as the only rank, and what it saved."""
    import torch

    def run(script: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        torch.save(job, folder / "job.pt")
        run_ranks(1, Path(__file__).with_name(script), folder / "job.pt", folder / "out.pt")
        return dict(torch.load(folder / "out.pt"))

    return run


def _chain(random: np.random.Generator) -> list[int]:
    ids = [int(random.integers(1, 256))]
    for surprise in random.random(int(random.integers(20, 200))) < 0.1:
        ids.append(int(random.integers(1, 256)) if surprise else ids[-1] * 7 % 255 + 1)
    return [*ids, 0]


def _write_split(dataset: Path, split: contract.Split, documents: list[list[int]]) -> contract.SplitRecord:
    folder = contract.split_directory(dataset, split)
    folder.mkdir(exist_ok=True)
    file = folder / "data-00000-000.arrow"
    names = [f"{split}-{number}" for number in range(len(documents))]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        writer.write_batch(pa.record_batch([documents, names], schema=contract.SCHEMA))
    tokens = sum(map(len, documents))
    shard = contract.ShardRecord(
        path=file.relative_to(dataset).as_posix(),
        documents=len(documents),
        tokens=tokens,
        size_bytes=file.stat().st_size,
        digest=contract.digest_file(file),
    )
    return contract.SplitRecord(documents=len(documents), tokens=tokens, shards=(shard,))
