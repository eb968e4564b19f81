from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.lock import LockedError, locked

ROOT = Path(__file__).resolve().parents[2]


def hold(path: Path, **options: bool) -> None:
    with locked(path, **options):
        pass


def test_a_lock_that_is_held_says_by_whom(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(LockedError, match=rf"^pid {os.getpid()} on .+$"):
        hold(tmp_path / "lock")


def test_a_shared_lock_keeps_out_only_who_wants_it_alone(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", shared=True):
        hold(tmp_path / "lock", shared=True)
        with pytest.raises(LockedError):
            hold(tmp_path / "lock")
    hold(tmp_path / "lock")


def test_a_lock_goes_with_its_holder_and_is_waited_for(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib, pipeline.lock\n"
            "with pipeline.lock.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    input()",
            tmp_path / "lock",
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match=f"^pid {holder.pid} on "):
        hold(tmp_path / "lock")
    holder.kill()
    hold(tmp_path / "lock", wait=True)
    holder.communicate()
