"""One rank as the launcher starts it: what goes wrong before the process group is told by rank 0, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from configs.load import load
from launch import train
from launch.cluster.supervisor import may_restart
from launch.config import TrainConfig
from launch.data.object_store import StoreUnreachableError
from launch.trainer.console import Console
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.ranks import RankEnvironment

ROOT = Path(__file__).resolve().parents[2]


def run_rank(
    rank: int | None, *arguments: str | Path, world_size: int = 2, local_rank: int | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    if rank is not None:
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        environment["LOCAL_RANK"] = str(rank if local_rank is None else local_rank)
    command = [sys.executable, "-m", "launch.train", f"--local_rank={rank or 0}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_without_a_launcher_it_says_how_to_start_one(config: Path) -> None:
    ended = run_rank(None, config)
    assert ended.returncode == 2
    assert ended.stderr.startswith("launch train: launch.train runs under DeepSpeed's launcher (RANK is not set)")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.vocab_size=100"], "model.vocab_size=100 is smaller than the tokenizer's 256"),
        (["data.sources.0.path=nowhere"], "dataset nowhere does not exist"),
        (["stepps=1"], "unknown key stepps; did you mean steps?"),
        (["run_dir=/dev/null/run"], "cannot be written"),
    ],
)
def test_rank_0_tells_the_users_mistake_in_one_line(config: Path, arguments: list[str], words: str) -> None:
    ended = run_rank(0, config, *arguments)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("launch train: ")
    assert words in line


def test_batch_that_does_not_divide_over_the_ranks_is_one_line(config: Path) -> None:
    [line] = run_rank(0, config, world_size=3).stderr.splitlines()
    assert "start 2 or 4 ranks, over which its 4 micro-batches" in line
    assert line.endswith("or use batch_tokens=768 or 1536")


@pytest.mark.parametrize("mistake", ["model.vocab_size=100", "stepps=1"])
def test_other_ranks_of_the_node_leave_the_word_to_its_first(config: Path, mistake: str) -> None:
    ended = run_rank(1, config, mistake)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("data.sources.0.path=nowhere", "dataset nowhere does not exist"),
        ("stepps=1", "unknown key stepps; did you mean steps?"),
    ],
)
def test_first_rank_of_another_node_tells_what_it_may_be_alone_in(config: Path, mistake: str, words: str) -> None:
    """A dataset or a config that one node lacks; had rank 0 found the same, this one would have been ended by now."""
    began_s = time.monotonic()
    ended = run_rank(1, config, mistake, local_rank=0)
    assert time.monotonic() - began_s > train.FIRST_TO_END_S
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("launch train: rank 1: ")
    assert words in line


@pytest.mark.parametrize(("words", "waits"), [("Connection closed by peer", True), ("shape mismatch", False)])
def test_rank_that_lost_its_peer_lets_the_peer_end_first(
    config: Path, monkeypatch: pytest.MonkeyPatch, words: str, waits: bool
) -> None:
    """DeepSpeed passes on the exit code that it sees first, which must be the one that tells why."""
    events: list[str] = []

    def fail(*parts: object) -> None:
        raise RuntimeError(words)

    def leave(code: int) -> NoReturn:
        events.append(f"exit {code}")
        raise SystemExit(code)

    console = Console(rank=1, log=config, stdout=1, stderr=2)
    monkeypatch.setattr(train, "read_inputs", fail)
    monkeypatch.setattr(train.time, "sleep", lambda seconds: events.append(f"wait {seconds > 2}"))
    monkeypatch.setattr(train.os, "_exit", leave)
    with pytest.raises(SystemExit):
        train._run(load(config, TrainConfig), RankEnvironment(1, 2, 1, None), console, Heartbeat())
    assert events == (["wait True"] if waits else []) + ["exit 1"]


def test_a_store_that_does_not_answer_is_one_line_of_any_rank_and_may_be_started_again(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*parts: object) -> None:
        raise StoreUnreachableError("s3://data/x cannot be read (OSError: Connection reset by peer); check the network")

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr(train, "read_inputs", fail)
    monkeypatch.setattr(train.os, "_exit", leave)
    console = Console(rank=3, log=config, stdout=1, stderr=2)
    with pytest.raises(SystemExit) as ended:
        train._run(load(config, TrainConfig), RankEnvironment(3, 4, 1, None), console, Heartbeat())
    assert ended.value.code == 1
    assert may_restart(1)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "launch train: rank 3: s3://data/x cannot be read (OSError: Connection reset by peer); check"
    )


def test_a_trainer_does_not_bring_mlflow_along() -> None:
    """Of all libraries together, DeepSpeed's autotuner before all; that no file of ours does: tests/architecture."""
    program = """
import sys
from launch.train import leave_out_mlflow
leave_out_mlflow()
import launch.trainer.attempt
print([name for name in sys.modules if name.split(".")[0] == "mlflow" and sys.modules[name] is not None])
print("deepspeed" in sys.modules)
"""
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-2:] == ["[]", "True"], ended.stderr


def test_a_rank_leaves_mlflow_out_before_deepspeed_is_imported(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(train, "leave_out_mlflow", lambda: done.append("left out"))
    monkeypatch.setattr(train, "_run", lambda *parts: done.append("ran") or 0)
    monkeypatch.setattr(train, "open_console", lambda *parts, **named: Console(rank=0, log=config, stdout=1, stderr=2))
    monkeypatch.setattr(train, "watch_parents", lambda **named: None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train.main([str(config), "watchdog.enabled=false"]) == 0
    assert done == ["left out", "ran"]


@pytest.mark.parametrize(("set_before", "asked"), [(None, True), ("0", False)])
def test_huge_pages_are_asked_for_unless_switched_off(set_before: str | None, asked: bool) -> None:
    """As Linux tells of the mapping that a tensor lies in: `hg` among its VmFlags (proc(5))."""
    program = """
from launch.train import use_huge_pages
use_huge_pages()
import torch
tensor = torch.ones(16_000_000)
address = tensor.data_ptr()
for line in open("/proc/self/smaps"):
    name, _, rest = line.partition(" ")
    if "-" in name:
        begin, end = (int(bound, 16) for bound in name.split("-"))
    elif name == "VmFlags:" and begin <= address < end:
        print("hg" in rest.split())
"""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    if set_before:
        environment["THP_MEM_ALLOC_ENABLE"] = set_before
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stdout == f"{asked}\n", ended.stderr


def test_the_end_runs_what_was_registered_and_gives_its_code() -> None:
    program = "import atexit; from launch.train import _end; atexit.register(print, 'told'); _end(3)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "told\n")
