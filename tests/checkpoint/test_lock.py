"""Locks between processes: a lock of this process would not keep it out of its own file."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint.lock import claim_output, exclusive_lock, run_is_alive
from checkpoint.manifest import CheckpointError

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_lock_of_another_process_is_an_error_with_the_given_text(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock") as holder,
        pytest.raises(CheckpointError, match="another service is here"),
        exclusive_lock(tmp_path / "lock", busy="another service is here"),
    ):
        holder.kill()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    with hold(tmp_path / "lock") as holder:
        holder.kill()
    with exclusive_lock(tmp_path / "lock", busy="still held"):
        pass


def test_run_is_alive_while_it_holds_its_lock(tmp_path: Path) -> None:
    assert not run_is_alive(tmp_path)
    with hold(tmp_path / ".lock") as holder:
        assert run_is_alive(tmp_path)
        holder.kill()
        holder.wait()
        assert not run_is_alive(tmp_path)


def test_lock_file_that_its_holder_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "lock", fcntl.flock

    def remove_first(file: Any, operation: int) -> None:
        path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with pytest.raises(CheckpointError, match="he was here"), exclusive_lock(path, busy="he was here"):
        pass


def test_claim_on_an_output_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "weights"
    with claim_output(output, busy=""):
        with pytest.raises(CheckpointError, match="busy here"), claim_output(output, busy="busy here"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock-weights"]
    with pytest.raises(KeyboardInterrupt), claim_output(output, busy=""):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
