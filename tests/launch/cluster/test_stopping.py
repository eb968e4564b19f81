"""Signals on their way to ranks, and what then became of the run, with stand-ins for DeepSpeed and srun.

Each start is a process of its own, so that a signal can be sent to it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster.stopping import DOUBLE_DELIVERY_S

ROOT = Path(__file__).resolve().parents[3]

STARTER = """
import os, signal, sys
from pathlib import Path
from launch.cluster import process, stopping
from launch.cluster.hostfile import Host
from launch.cluster.launcher import Hostfile, Local, Slurm
from launch.cluster.process import run_command
from launch.config import LauncherConfig
kind, stand_in, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
stopping.TOLD_WITHIN_S = float(sys.argv[4])
process.STRAGGLERS_GRACE_S = 1.0
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored, where the tests run under nohup
hosts = (Host("a", 1), Host("b", 1))
placement = {
    "local": Local(ranks=1, master_port=1),
    "hostfile": Hostfile(hosts, LauncherConfig()),
    "slurm": Slurm(hosts, folder / "hostfile"),
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

    def __init__(self, kind: str, stand_in: str, folder: Path, *, saves: bool = True) -> None:
        (folder / "logs").mkdir()
        self._log = folder / "logs" / "launcher.log"
        command = [sys.executable, "-c", STARTER, kind, stand_in, str(folder), "60" if saves else "0.5"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
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
            "launch train: no space left\n",  # before or after what the signal lets be said
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


def test_terminal_that_closes_is_as_sigterm(tmp_path):
    started = Started("local", tree('print("rank saves", flush=True); sys.exit(128 + number)'), tmp_path)
    started.send(signal.SIGHUP)
    assert started.end() == (143, WAITING.format(name="SIGTERM"))
    assert "\nrank saves" in started.log


def test_terminal_that_closes_while_the_ranks_save_ends_nothing(tmp_path):
    deed = 'print("rank notes", flush=True); time.sleep(3); sys.exit(128 + number)'
    started = Started("local", tree(deed), tmp_path)
    started.send(signal.SIGINT)
    started.wait_for("rank notes")
    time.sleep(DOUBLE_DELIVERY_S)
    started.send(signal.SIGHUP)
    assert started.end() == (130, WAITING.format(name="SIGINT"))


def test_signal_that_comes_twice_at_once_is_one(tmp_path):
    started = Started("local", tree('print("rank saves", flush=True); time.sleep(1); sys.exit(128 + number)'), tmp_path)
    started.send(signal.SIGINT)
    started.send(signal.SIGINT)
    assert started.end() == (130, WAITING.format(name="SIGINT"))


def telling(folder: Path, state: str) -> str:
    """Python that writes what rank 0 does at the end of a run."""
    return (
        "from pathlib import Path; from checkpoint.events import EventWriter, events_file; "
        f"events = EventWriter(events_file(Path({str(folder)!r}))); "
        f"events.write('state', step=2, state={state!r}); events.sync()"
    )


def test_second_signal_after_the_save_is_still_a_save(tmp_path):
    deed = f'{telling(tmp_path, "killed")}; print("rank saved", flush=True)'
    started = Started("local", tree(deed), tmp_path)
    started.send(signal.SIGINT)
    started.wait_for("rank saved")
    time.sleep(DOUBLE_DELIVERY_S)
    started.send(signal.SIGINT)
    assert started.end() == (130, WAITING.format(name="SIGINT"))


def test_signal_to_a_run_that_has_finished_is_no_loss(tmp_path):
    deed = f"{telling(tmp_path, 'finished')}; signal.signal(number, signal.SIG_DFL); signal.raise_signal(number)"
    started = Started("local", tree(deed), tmp_path)
    started.send(signal.SIGTERM)
    told = "launch train: SIGTERM came when the run had finished; nothing is lost\n"
    assert started.end() == (0, WAITING.format(name="SIGTERM") + told)


def ranks_elsewhere(folder: Path, state: str | None) -> str:
    """A launcher of ranks on other machines, which do what the run's folder asks for: it ends with 1 at once, and what
    they say of themselves is seen a little later."""
    late = f"import time; time.sleep(0.3); {telling(folder, state)}" if state else "pass"
    return f"""
import subprocess, sys, time
from pathlib import Path
request = Path({str(folder)!r}, "stop-requested")
print("rank " + "begins", flush=True)
while not request.exists() or not request.read_text():
    time.sleep(0.05)
print("rank is asked for " + request.read_text(), flush=True)
null = subprocess.DEVNULL
subprocess.Popen([sys.executable, "-c", {late!r}], stdout=null, stderr=null, start_new_session=True)
sys.exit(1)
"""


@pytest.mark.parametrize("kind", ["hostfile", "slurm"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_on_other_machines_are_asked_through_the_runs_folder(tmp_path, kind, number):
    started = Started(kind, ranks_elsewhere(tmp_path, "killed"), tmp_path)
    started.send(number)
    assert started.end() == (128 + number, WAITING.format(name=number.name))
    assert f"\nrank is asked for {number.name}\n" in started.log
    # or the next start would heed it
    assert not (tmp_path / "stop-requested").exists()


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        ("finished", 0, "launch train: SIGTERM came when the run had finished; nothing is lost"),
        ("failed", 1, "launch train: failed with exit code 1"),
        (None, 1, "launch train: ended by SIGTERM without a new checkpoint; see"),
    ],
)
def test_their_own_word_says_how_they_ended(tmp_path, state, code, told):
    started = Started("hostfile", ranks_elsewhere(tmp_path, state), tmp_path, saves=state is not None)
    started.send(signal.SIGTERM)
    ended, shown = started.end()
    assert (ended, told in shown) == (code, True)


def test_save_of_before_the_signal_is_none_after_it(tmp_path):
    """One that was under way may come to its end while the ranks are killed in the next."""
    (tmp_path / "checkpoints").mkdir()
    moved = f"Path({str(tmp_path)!r}, 'checkpoints', 'latest').write_text('step-1')"
    stand_in = ranks_elsewhere(tmp_path, None).replace("null =", f"{moved}\nnull =")
    started = Started("hostfile", stand_in, tmp_path, saves=False)
    started.send(signal.SIGUSR1)
    code, shown = started.end()
    assert code == 1
    assert "ended by SIGUSR1 without a new checkpoint" in shown


@pytest.mark.parametrize("kind", ["hostfile", "slurm"])
def test_second_signal_goes_to_the_launcher_of_other_machines(tmp_path, kind):
    started = Started(kind, LISTENS.format(deed="sys.exit(1)"), tmp_path, saves=False)
    started.send(signal.SIGINT)
    time.sleep(2 * DOUBLE_DELIVERY_S)
    assert started.process.poll() is None
    started.send(signal.SIGINT)
    code, shown = started.end()
    assert code == 1
    assert "launch train: ended by SIGINT without a new checkpoint; see" in shown
