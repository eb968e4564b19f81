"""Real processes that hang: one that never goes on, one that is stopped, as its sibling sees it. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoint.events import events_file, read_events
from launch.trainer.heartbeat import read_sign
from launch.trainer.watchdog import HANG_EXIT_CODE

ROOT = Path(__file__).resolve().parents[3]
# the limits of seconds, so that the test is not one of minutes
RANK = """
import sys, threading, time
from pathlib import Path
from launch.supervision_config import WatchdogConfig
from launch.trainer import watchdog
from launch.trainer.ranks import RankEnvironment
run, rank, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
watchdog.POLL_INTERVAL_S, watchdog.WRITE_INTERVAL_S, watchdog.GRACE_S, watchdog.KILL_DELAY_S = 0.1, 0.2, 1.5, 1
config = WatchdogConfig(floor_s=2, pause_s=float(sys.argv[4]))
ranks = RankEnvironment(rank=rank, world_size=2, local_rank=rank, launcher_pid=None)
dog = watchdog.Watchdog(config, ranks, run_dir=run, alarm=lambda text: print(text, flush=True))
dog.start()
for step in range(1, steps + 1):
    dog.heartbeat.step(step, is_warm_up=step == 1)
    dog.heartbeat.phase("forward")
    time.sleep(0.05)
    dog.heartbeat.end_step()
def wait_for_ever():
    threading.Event().wait(60)
dog.heartbeat.step(steps + 1, is_warm_up=steps == 0)
dog.heartbeat.phase("exchange")
wait_for_ever()
"""


def start(run: Path, rank: int, *, steps: int, pause_s: float = 60) -> subprocess.Popen[str]:
    (run / "logs").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", RANK, str(run), str(rank), str(steps), str(pause_s)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def hung(tmp_path: Path) -> tuple[Path, list[subprocess.Popen[str]], list[str]]:
    """Rank 0 stopped, as a broken node would be, while rank 1 waits for it."""
    processes = [start(tmp_path, rank, steps=5) for rank in (0, 1)]
    deadline_s = time.monotonic() + 60
    while any((sign := read_sign(tmp_path, rank)) is None or sign.step < 6 for rank in (0, 1)):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(processes[0].pid, signal.SIGSTOP)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    return tmp_path, processes, outputs


def test_stopped_rank_is_named_by_the_other_which_ends_and_ends_it(
    hung: tuple[Path, list[subprocess.Popen[str]], list[str]],
) -> None:
    run, (stopped, living), outputs = hung
    assert living.returncode == HANG_EXIT_CODE == 72
    # a stopped process heeds nothing less
    assert stopped.returncode == -signal.SIGKILL
    assert outputs[0] == ""
    line = f"hang at step 6: rank gives no sign of life: 0 (process {stopped.pid} on {os.uname().nodename}, step 6, "
    assert outputs[1].startswith(line)
    assert outputs[1].endswith(f"The run was ended; the ranks' stacks are in {run}/logs/stacks-rank-*.txt\n")
    assert "wait_for_ever" in (run / "logs" / "stacks-rank-1.txt").read_text()


def test_event_is_written_by_the_rank_that_lives(hung: tuple[Path, list[subprocess.Popen[str]], list[str]]) -> None:
    incident, state = [event for event, _ in read_events(events_file(hung[0]))]
    assert (incident.kind, incident.step) == ("incident", 6)
    assert (incident.fields["what"], incident.fields["ranks"]) == ("hang", [0])
    assert (state.fields["state"], state.fields["reason"]) == ("failed", incident.fields["text"])


def test_start_that_never_comes_to_its_first_step_is_a_hang_too(tmp_path: Path) -> None:
    alone = start(tmp_path, 0, steps=0, pause_s=3)
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == HANG_EXIT_CODE
    assert "1 (never seen)" in output


def test_process_that_was_suspended_and_goes_on_is_no_hang(tmp_path: Path) -> None:
    process = start(tmp_path, 0, steps=400)
    try:
        deadline_s = time.monotonic() + 60
        while (sign := read_sign(tmp_path, 0)) is None or sign.step < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(7)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(1.5)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
