"""One trainer a run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.config import TrainingError
from launch.trainer.lock import hold_lock, refuse_if_at_work

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pathlib import Path; from launch.trainer.lock import hold_lock; "
    "hold_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(float(sys.argv[2]))"
)


def holder(run_dir: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run_dir), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_second_trainer_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path, 60)
    try:
        with pytest.raises(TrainingError, match=rf"another trainer \(pid {process.pid} on .+\) is at work in"):
            hold_lock(tmp_path, patience_s=0.3)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("launcher_lives", [True, False])
def test_trainer_at_work_is_seen_before_ranks_start_unless_it_is_an_orphan_and_about_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher_lives: bool
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv("SMOLLM2_LAUNCHER_PID", str(os.getpid() if launcher_lives else gone.pid))
    refuse_if_at_work(tmp_path)
    process = holder(tmp_path, 60)
    try:
        if launcher_lives:
            words = rf"^another trainer \(pid {process.pid} on .+\) is at work in .*; wait for it, end it, or choose"
            with pytest.raises(TrainingError, match=words):
                refuse_if_at_work(tmp_path)
        else:
            refuse_if_at_work(tmp_path)
    finally:
        process.kill()
        process.wait()
    refuse_if_at_work(tmp_path)
    os.close(hold_lock(tmp_path, patience_s=0))


def test_lock_of_a_trainer_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path, 0.5)
    started_s = time.monotonic()
    os.close(hold_lock(tmp_path, patience_s=15))
    assert time.monotonic() - started_s < 10
    assert process.wait() == 0
