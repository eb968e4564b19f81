"""A rank without its launcher ends itself, even in a call that does not return to Python's main loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.trainer.orphans import ORPHAN_EXIT_CODE

ROOT = Path(__file__).resolve().parents[3]
RANK = (
    "from launch.trainer.orphans import watch_parents; watch_parents(launcher_pid={pid}); import time; time.sleep(60)"
)


def is_alive(pid: int) -> bool:
    """Running, as opposed to gone or waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rank_ends_when_its_parent_dies() -> None:
    parent_code = (
        "import subprocess, sys, time; "
        f"rank = subprocess.Popen([sys.executable, '-c', {RANK.format(pid=None)!r}]); "
        "print(rank.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    rank_pid = int(parent.stdout.readline())
    time.sleep(1.0)  # the rank has to have looked at its parent
    assert is_alive(rank_pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 10
    while is_alive(rank_pid) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    alive = is_alive(rank_pid)
    if alive:
        os.kill(rank_pid, signal.SIGKILL)
    assert not alive


def test_rank_ends_when_the_launcher_dies() -> None:
    launcher = subprocess.Popen(["sleep", "60"])
    rank = subprocess.Popen([sys.executable, "-c", RANK.format(pid=launcher.pid)], cwd=ROOT)
    time.sleep(1.0)
    assert rank.poll() is None
    launcher.kill()  # and stays unburied for now, as a launcher's parent may be slow
    try:
        assert rank.wait(timeout=10) == ORPHAN_EXIT_CODE
    finally:
        launcher.wait()
        rank.kill()
        rank.wait()
