"""Signals on their way to ranks, and what the exit code then says, with stand-ins for DeepSpeed, srun and scancel.

Each start is a process of its own, so that a signal can be sent to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster.stopping import DOUBLE_DELIVERY_S

ROOT = Path(__file__).resolve().parents[3]

STARTER = """
import os, sys
from pathlib import Path
from launch.cluster import stopping
from launch.cluster.hostfile import Host
from launch.cluster.launcher import Hostfile, Local, Slurm
from launch.cluster.process import run_command
from launch.config import LauncherConfig
kind, stand_in, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
stopping.SAVING_GRACE_S = stopping.SCANCEL_TIMEOUT_S = float(sys.argv[4])
hosts = (Host("a", 1), Host("b", 1))
placement = {
    "local": Local(ranks=1, master_port=1),
    "hostfile": Hostfile(hosts, LauncherConfig()),
    "slurm": Slurm(hosts, folder / "hostfile", job_id="77"),
}[kind]
code = run_command([sys.executable, "-c", stand_in], placement, environment=os.environ, run_dir=folder)
sys.stderr.flush()
os._exit(code)
"""

# DeepSpeed's tree in small: the command, the process that watches, the rank
TREE = """
import subprocess, sys
watcher = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {RANK!r}]).returncode)"
sys.exit(subprocess.run([sys.executable, "-c", watcher]).returncode)
"""
LISTENS = """
import signal, sys, time
def note(number, frame):
    {deed}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("rank " + "begins", flush=True)
for _ in range(600):  # a signal just before a long sleep would be noticed after it
    time.sleep(0.1)
"""


def tree(deed: str) -> str:
    return f"RANK = {LISTENS.format(deed=deed)!r}{TREE}"


class Started:
    """A start whose rank runs. With `saves`, what is waited for comes, however late; without, it never does."""

    def __init__(self, kind: str, stand_in: str, folder: Path, *, saves: bool = True, path: str | None = None) -> None:
        (folder / "logs").mkdir()
        (folder / "checkpoints").mkdir()
        self._log = folder / "logs" / "launcher.log"
        command = [sys.executable, "-c", STARTER, kind, stand_in, str(folder), "60" if saves else "0.5"]
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        self.wait_for("rank begins")

    def wait_for(self, line: str) -> None:
        deadline_s = time.monotonic() + 60
        while f"\n{line}" not in self.log:
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.is_file() else ""

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """The exit code and what stood on stderr."""
        _, shown = self.process.communicate(timeout=30)
        return self.process.returncode, shown


WAITING = "launch train: {name}: the ranks finish their step and save; again: now\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_goes_to_the_ranks_and_is_waited_for(tmp_path, number):
    started = Started("local", tree('print("rank saves", flush=True); sys.exit(128 + number)'), tmp_path)
    started.send(number)
    assert started.end() == (128 + number, WAITING.format(name=number.name))
    assert "\nrank saves" in started.log


@pytest.mark.parametrize(
    ("deed", "code", "told"),
    [
        (
            'print("launch train: no space left", file=sys.stderr, flush=True); sys.exit(2)',
            2,
            WAITING.format(name="SIGTERM") + "launch train: no space left\n",
        ),
        ('raise RuntimeError("the save broke")', 1, "failed with exit code 1:\n    RuntimeError: the save broke\n"),
        ("import os; os.kill(os.getpid(), 9)", 247, "ended by SIGKILL; often the machine ran out of memory"),
        (
            "signal.signal(number, signal.SIG_DFL); signal.raise_signal(number)",
            1,
            "launch train: ended by SIGTERM without a new checkpoint; see",
        ),
    ],
    ids=["save fails", "rank breaks", "no memory for the save", "rank is ended before it can save"],
)
def test_rank_that_does_not_save_after_a_signal_is_told(tmp_path, deed, code, told):
    started = Started("local", tree(deed), tmp_path)
    started.send(signal.SIGTERM)
    ended, shown = started.end()
    assert ended == code
    assert told in shown


def test_second_signal_ends_ranks_that_do_not_listen_and_is_no_save(tmp_path):
    started = Started("local", tree('print("rank notes", flush=True)'), tmp_path)
    started.send(signal.SIGINT)
    started.wait_for("rank notes")
    assert started.process.poll() is None
    time.sleep(DOUBLE_DELIVERY_S)
    started.send(signal.SIGINT)
    code, shown = started.end()
    assert code == 1
    assert "launch train: ended by SIGINT without a new checkpoint; see" in shown


def test_signal_that_comes_twice_at_once_is_one(tmp_path):
    started = Started("local", tree('print("rank saves", flush=True); time.sleep(1); sys.exit(128 + number)'), tmp_path)
    started.send(signal.SIGINT)
    started.send(signal.SIGINT)
    assert started.end() == (130, WAITING.format(name="SIGINT"))


def test_second_signal_after_the_save_is_still_a_save(tmp_path):
    latest = tmp_path / "checkpoints" / "latest"
    deed = f'open({str(latest)!r}, "w").close(); print("rank saved", flush=True)'
    started = Started("local", tree(deed), tmp_path)
    started.send(signal.SIGINT)
    started.wait_for("rank saved")
    time.sleep(DOUBLE_DELIVERY_S)
    started.send(signal.SIGINT)
    assert started.end() == (130, WAITING.format(name="SIGINT"))


def saving_launcher(folder: Path, *, saves: bool) -> str:
    """DeepSpeed's launcher of other machines: it ends with 1 at once, whatever the ranks do a little later."""
    deed = f"""
    import subprocess
    save = "import time; time.sleep(0.2); from pathlib import Path; " \\
        "Path({str(folder)!r}, 'checkpoints', 'next').write_text('step-2'); " \\
        "Path({str(folder)!r}, 'checkpoints', 'next').rename(Path({str(folder)!r}, 'checkpoints', 'latest'))"
    null = subprocess.DEVNULL
    if {saves}:
        subprocess.Popen([sys.executable, "-c", save], stdout=null, stderr=null, start_new_session=True)
    sys.exit(1)"""
    return LISTENS.format(deed=deed.strip())


@pytest.mark.parametrize(("saves", "code"), [(True, 143), (False, 1)])
def test_hosts_have_saved_if_latest_has_moved(tmp_path, saves, code):
    started = Started("hostfile", saving_launcher(tmp_path, saves=saves), tmp_path, saves=saves)
    (tmp_path / "checkpoints" / "latest").write_text("step-1")
    started.send(signal.SIGTERM)
    ended, shown = started.end()
    assert ended == code
    assert ("ended by SIGTERM without a new checkpoint" in shown) is not saves


def write_scancel(folder: Path, script: str) -> str:
    (folder / "scancel").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "scancel").chmod(0o755)
    return str(folder)


def test_allocation_is_signalled_by_scancel_and_not_through_srun(tmp_path):
    path = write_scancel(tmp_path, f'echo "$@" > {tmp_path}/called')
    ends = f"""
import sys, time
from pathlib import Path
print("rank " + "begins", flush=True)
while not Path({str(tmp_path)!r}, "called").exists():
    time.sleep(0.05)
Path({str(tmp_path)!r}, "checkpoints", "latest").write_text("step-2")
sys.exit(1)
"""
    started = Started("slurm", ends, tmp_path, path=path)
    started.send(signal.SIGINT)
    assert started.end() == (130, WAITING.format(name="SIGINT"))
    assert (tmp_path / "called").read_text() == "--signal=TERM 77\n"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60"])
def test_allocation_that_scancel_does_not_reach_is_ended(tmp_path, script):
    path = write_scancel(tmp_path, script)
    started = Started("slurm", LISTENS.format(deed="sys.exit(1)"), tmp_path, saves=False, path=path)
    started.send(signal.SIGINT)
    code, shown = started.end()
    assert code == 1
    assert "the ranks finish their step" not in shown
    assert "launch train: ended by SIGINT without a new checkpoint; see" in shown
