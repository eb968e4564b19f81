"""Compiling DeepSpeed's CPU collective: where, and what a killed build leaves. The compiler itself is stood in for."""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
from pathlib import Path

import pytest

from launch.trainer import cpu_operator
from launch.trainer.cpu_operator import choose_build_directory, load_cpu_operator, unlink_buffer


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each build: whether torch's own mark of a build under way was there, on which torch would wait for ever."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    seen: list[bool] = []
    module = importlib.import_module("deepspeed.comm.torch")
    mark = tmp_path / "deepspeed_shm_comm" / "lock"
    monkeypatch.setattr(module, "build_shm_op", lambda: seen.append(mark.exists()))
    return seen


def test_mark_of_a_killed_build_is_removed(builds: list[bool], tmp_path: Path) -> None:
    mark = tmp_path / "deepspeed_shm_comm" / "lock"
    mark.parent.mkdir()
    mark.touch()
    load_cpu_operator(lambda text: None)
    assert builds == [False]


def test_user_is_told_of_the_first_build_only(builds: list[bool], tmp_path: Path) -> None:
    said: list[str] = []
    load_cpu_operator(said.append)
    assert len(said) == 1
    assert "compiling DeepSpeed's collective" in said[0]
    (tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so").touch()
    load_cpu_operator(said.append)
    assert len(said) == 1


def test_one_process_builds_at_a_time(builds: list[bool], tmp_path: Path) -> None:
    with (tmp_path / ".deepspeed_shm_comm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=load_cpu_operator, args=(lambda text: None,))
        waiting.start()
        waiting.join(timeout=0.5)
        assert builds == []
    waiting.join(timeout=10)
    assert builds == [False]


def test_builds_lie_in_the_environment_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    choose_build_directory()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(Path(sys.prefix) / "torch_extensions")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/chosen")
    choose_build_directory()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/chosen"


def test_buffer_is_unlinked_for_its_rank_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_operator, "_SHARED_MEMORY", tmp_path)
    names = [f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_29500_{rank}" for rank in range(2)]
    for name in names:
        (tmp_path / name).touch()
    unlink_buffer(rank=1, address="127.0.0.1", port="29500")
    unlink_buffer(rank=1, address="127.0.0.1", port="29500")
    assert [file.name for file in tmp_path.iterdir()] == names[:1]
