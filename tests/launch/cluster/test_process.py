"""The child process: what is shown, logged and returned, with stand-ins for DeepSpeed, and twice with DeepSpeed.

The stand-ins are Python scripts run as the whole command; the signals are sent to a process of its own that starts one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cluster import process, silence
from launch.cluster.launcher import Hostfile, LauncherError, Local
from launch.cluster.output import returned_code
from launch.cluster.process import run_command, usable_device_count
from launch.cluster.stopping import StopWish
from launch.config import LauncherConfig

FAILURE = "node-1: [2026-11-26 17:28:09,302] [ERROR] [launch.py:259:main] ['python', '-u'] exits with return code = "
SUCCESS = "[2026-11-25 15:31:04,406] [INFO] [launch.py:367:main] Process 1 exits successfully."
LOCAL = Local(ranks=1, master_port=1)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path):
    """Runs a stand-in's Python text and returns the exit code; `run.log` holds the log's text."""

    (tmp_path / "logs").mkdir()

    def start(text: str, placement: Local | Hostfile = LOCAL) -> int:
        code = run_command([sys.executable, "-c", text], placement, environment=os.environ, run_dir=tmp_path)
        start.log = (tmp_path / "logs" / "launcher.log").read_text()
        return code

    return start


def test_ranks_lines_are_shown_and_deepspeeds_are_not(run, capsys):
    assert run(f"print('step 1/3  loss 5.5'); print('{SUCCESS}')") == 0
    assert capsys.readouterr().out == "step 1/3  loss 5.5\n"


def test_everything_is_in_the_log_after_the_command(run):
    run(f"import sys; print('seen'); print('{SUCCESS}'); print('wrong', file=sys.stderr); print(b'\\xff')")
    first, *rest = run.log.splitlines()
    assert re.match(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*python.* -c ", first)
    for line in ("seen", SUCCESS, "wrong"):
        assert line in rest


def test_a_second_attempt_appends_to_the_log(run):
    run(f"print('first'); print('{SUCCESS}')")
    run(f"print('second'); print('{SUCCESS}')")
    assert run.log.index("first") < run.log.index("second")


def test_stderr_of_a_run_that_ends_well_is_not_shown(run, capsys):
    assert run(f"import sys; print('noise', file=sys.stderr); print('{SUCCESS}')") == 0
    assert capsys.readouterr().err == ""


def test_a_failure_is_one_block_with_the_exception_and_the_log(run, capsys, tmp_path):
    assert run("print('step 1'); raise RuntimeError('the rank broke')") == 1
    shown = capsys.readouterr()
    assert shown.out == "step 1\n"
    assert shown.err == (
        "launch train: failed with exit code 1:\n"
        "    RuntimeError: the rank broke\n"
        f"launch train: all output is in {tmp_path / 'logs' / 'launcher.log'}\n"
    )


def test_a_users_mistake_stays_one_line(run, capsys):
    assert run("import sys; print('launch train: batch_tokens=3; use 4', file=sys.stderr); sys.exit(2)") == 2
    assert capsys.readouterr().err == "launch train: batch_tokens=3; use 4\n"


def test_exit_code_two_without_a_line_is_explained(run, capsys):
    assert run("import sys; sys.exit(2)") == 2
    assert "failed with exit code 2" in capsys.readouterr().err


def test_exit_code_is_passed_through(run):
    assert run("import sys; sys.exit(71)") == 71


def test_a_child_killed_by_a_signal_is_named(run, capsys):
    assert run("import os; os.kill(os.getpid(), 9)") == 137
    assert "ended by SIGKILL; often the machine ran out of memory" in capsys.readouterr().err


def test_zero_without_a_rank_that_ended_well_is_a_failure(run, capsys):
    assert run("print('step 1')") == 1
    assert "DeepSpeed's launcher ended before its ranks did" in capsys.readouterr().err
    assert run("print('step 1')", Hostfile((), LauncherConfig(remote_launcher="openmpi"))) == 0


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ((2, -6, 72), 2),
        ((72, 2), 2),  # a node's last lines may come late
        ((1, 72), 1),
        ((-9, 1), 247),
        ((), 72),
    ],
)
def test_exit_code_of_several_nodes_is_the_mistake_or_what_was_told_first(run, told: tuple[int, ...], code: int):
    lines = "".join(f'print("{FAILURE}{number}"); ' for number in told)
    assert run(f"import sys; {lines}sys.exit(72)", Hostfile((), LauncherConfig())) == code
    assert run(f"import sys; {lines}sys.exit(72)") == 72  # one node's launcher returns the first itself


def is_running(pid: int) -> bool:
    """False also for a process that has ended and that no parent has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_that_outlive_the_launcher_are_ended(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("launch.cluster.process.STRAGGLERS_GRACE_S", 0.5)
    begun = tmp_path / "begun"
    rank = f"import os, pathlib, time; pathlib.Path({str(begun)!r}).write_text(str(os.getpid()) + '.'); time.sleep(60)"
    launcher = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {rank!r}])
while not (pathlib.Path({str(begun)!r}).exists() and pathlib.Path({str(begun)!r}).read_text().endswith(".")):
    time.sleep(0.01)
print("{SUCCESS}")
"""
    assert run(launcher) == 1
    assert "ended before its ranks did" in capsys.readouterr().err
    # the kernel closes a process's pipes a little before it is gone
    deadline_s = time.monotonic() + 10
    while is_running(int(begun.read_text().rstrip("."))):
        assert time.monotonic() < deadline_s, "the rank still runs"
        time.sleep(0.01)


def test_much_output_on_both_pipes_does_not_block(run):
    text = f"import sys\nfor i in range(20000): print('x' * 50); print('y' * 50, file=sys.stderr)\nprint('{SUCCESS}')"
    assert run(text) == 0
    assert run.log.count("y" * 50) == 20_000


def test_a_command_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(LauncherError, match="no-such-srun is not in PATH; install it"):
        run_command(["no-such-srun"], LOCAL, environment={}, run_dir=tmp_path)


def test_a_screen_that_has_gone_away_does_not_end_the_run(tmp_path):
    stand_in = f"import time\nfor i in range(50): print(i, flush=True)\nprint('{SUCCESS}')"
    starter = start_in_background(tmp_path, stand_in, stdout=subprocess.PIPE)
    starter.stdout.close()
    assert starter.wait(timeout=30) == 0
    assert "49" in (tmp_path / "logs" / "launcher.log").read_text()


STARTER = """
import os, sys
from pathlib import Path
from launch.cluster.launcher import Local
from launch.cluster.process import run_command
folder = Path(sys.argv[2])
(folder / "logs").mkdir()
code = run_command([sys.executable, "-c", sys.argv[1]], Local(ranks=1, master_port=1), environment=os.environ,
                   run_dir=folder)
sys.stderr.flush()
os._exit(code)
"""


def start_in_background(folder: Path, stand_in: str, **settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", STARTER, stand_in, str(folder)], cwd=ROOT, **settings)


def wait_for_text(file: Path, text: str, *, count: int = 1, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not file.is_file() or file.read_text().count(text) < count:
        assert time.monotonic() < deadline_s, f"no {text!r} in {file}: {file.is_file() and file.read_text()}"
        time.sleep(0.05)


TINY_RANK = """
import os, signal, sys, time
rank, ranks, threads = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS"))
# one write a line: two ranks share the pipe, and print would write the newline by itself
sys.stdout.write(f"rank {rank} of {ranks} has {threads} thread(s)\\n")
sys.stdout.write(f"watched by {os.environ['SMOLLM2_LAUNCHER_PID']} {os.environ['DS_ACCELERATOR']}\\n")
if sys.argv[-1] == "wait=1":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print("rank waits", flush=True)
    time.sleep(60)
"""

TINY_START = """
import os, sys
from pathlib import Path
import launch.cluster.launcher, launch.cluster.process
launch.cluster.launcher.TRAIN_MODULE = "tiny_rank"
from launch.config import LauncherConfig
import torch
# a machine with one device, where the user asks for the CPU as `make demo` does
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
sys.exit(launch.cluster.process.start_training(
    Path("config.yaml"), sys.argv[1:], LauncherConfig(ranks_per_node=2), run_dir=Path("run")))
"""


@pytest.fixture
def tiny_start(tmp_path):
    """Starts two ranks of a module that does nothing, by DeepSpeed itself."""
    (tmp_path / "tiny_rank.py").write_text(TINY_RANK)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "DS_ACCELERATOR": "cpu"}
    environment.pop("OMP_NUM_THREADS", None)

    def start(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TINY_START, *overrides],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_deepspeed_starts_the_ranks_and_only_they_are_heard(tiny_start, tmp_path):
    started = tiny_start()
    shown, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    threads = max(1, (os.cpu_count() or 1) // 2)
    lines = [line for line in shown.splitlines() if line]
    assert sorted(lines) == sorted(
        [f"rank {rank} of 2 has {threads} thread(s)" for rank in (0, 1)] + [f"watched by {started.pid} cpu"] * 2
    )
    assert "[INFO] [runner.py" in (tmp_path / "run" / "logs" / "launcher.log").read_text()


def test_deepspeeds_ranks_get_the_signal_and_their_exit_code_comes_back(tiny_start, tmp_path):
    started = tiny_start("wait=1")
    wait_for_text(tmp_path / "run" / "logs" / "launcher.log", "rank waits", count=2, timeout_s=120)
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 143
    assert errors == "launch train: SIGTERM: the ranks finish their step and save; again: now\n"
    # as the launchers of several nodes are read
    log = (tmp_path / "run" / "logs" / "launcher.log").read_text().splitlines()
    assert [code for code in map(returned_code, log) if code is not None] == [143]


def test_devices_do_not_count_where_deepspeed_is_told_to_use_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert usable_device_count({}) == 1
    assert usable_device_count({"DS_ACCELERATOR": "cpu"}) == 0


HEARTBEAT = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1]) / "logs" / "heartbeats"
folder.mkdir(parents=True)
for beat in range(int(sys.argv[2])):
    (folder / "rank-0.json").write_text(str(beat))
    time.sleep(0.1)
time.sleep(60)
"""


def test_launcher_that_waits_though_no_rank_lives_is_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(silence, "SILENCE_S", 1.0)
    monkeypatch.setattr(process, "POLL_INTERVAL_S", 0.1)
    monkeypatch.setattr(process, "ENDING_GRACE_S", 0.5)
    (tmp_path / "logs").mkdir()
    # SIGTERM is ignored, as an ssh to a node that is gone keeps a launcher from ending
    text = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + HEARTBEAT
    command = [sys.executable, "-c", text, str(tmp_path), "10"]
    began_s = time.monotonic()
    assert run_command(command, LOCAL, environment=os.environ, run_dir=tmp_path) == 72
    assert time.monotonic() - began_s > 2  # a second of life, then one of silence
    assert "launch train: no rank has given a sign of life for" in capsys.readouterr().err


def test_silence_before_the_first_sign_of_life_is_a_start(tmp_path, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE_S", 0.2)
    folder = tmp_path / "logs" / "heartbeats"
    folder.mkdir(parents=True)
    (folder / "rank-0.json").write_text("an earlier attempt's")
    watch = silence.Silence(tmp_path)
    time.sleep(0.4)
    assert not watch.is_long()


def test_pause_of_the_launcher_is_no_silence_of_the_ranks(tmp_path, monkeypatch):
    """`scontrol suspend` stops it with the ranks, and it may be the first to wake."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    folder = tmp_path / "logs" / "heartbeats"
    folder.mkdir(parents=True)
    watch = silence.Silence(tmp_path)
    (folder / "rank-0.json").write_text("life")
    long_at_s = []
    for clock.now_s in (5.0, 10.0, 3610.0, *range(3615, 3741, 5)):
        if watch.is_long():
            long_at_s.append(clock.now_s)
    # 5 s of silence before the pause and 120 after it are the first that are more than SILENCE_S
    assert long_at_s == [3730, 3735, 3740]


def test_first_signal_is_told_as_it_comes(tmp_path):
    (tmp_path / "logs").mkdir()
    wish = StopWish()
    text = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    command = [sys.executable, "-c", text]
    assert run_command(command, LOCAL, environment=os.environ, run_dir=tmp_path, wish=wish) == 1
    assert wish.received is signal.SIGUSR1


def test_signal_that_came_before_the_child_ends_it(tmp_path, capsys):
    """While torch is imported, say: nobody would come again to tell the run of it."""
    (tmp_path / "logs").mkdir()
    wish = StopWish()
    wish.note(signal.SIGTERM)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    began_s = time.monotonic()
    assert run_command(command, LOCAL, environment=os.environ, run_dir=tmp_path, wish=wish) == 1
    assert time.monotonic() - began_s < 30
    assert "ended by SIGTERM without a new checkpoint" in capsys.readouterr().err
