"""Starts DeepSpeed's launcher as a child, relays what it says, passes signals on, and returns its exit code.

All output goes to RUN/logs/launcher.log. To the screen go the lines of the ranks; DeepSpeed's own log lines do not,
and what stands on stderr is held back until the end, where it is told once if the run failed.

The child is a session of its own, so that a terminal's Ctrl-C reaches it only through `stopping.py`, which tells how a
signal goes to the ranks. The second one goes to DeepSpeed's launcher, which for a hostfile's hosts then runs
`pkill -f deepspeed.launcher.launch` on every host: that ends all DeepSpeed jobs of that user there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from launch.cluster.hostfile import format_hostfile
from launch.cluster.launcher import (
    Hostfile,
    LauncherError,
    Local,
    Placement,
    Slurm,
    build_command,
    child_environment,
    choose_placement,
)
from launch.cluster.output import (
    ERROR_PREFIX,
    describe_exit,
    error_lines,
    is_logger_line,
    is_success,
    is_users,
    returned_code,
    show,
)
from launch.cluster.silence import POLL_INTERVAL_S, SILENCE_S, Silence
from launch.cluster.stopping import ForwardedSignals, StopWish
from launch.config import LauncherConfig
from launch.trainer.stop_request import withdraw_stop
from launch.trainer.watchdog import HANG_EXIT_CODE

HELD_LINES = 1000
ENDING_GRACE_S = 40.0  # DeepSpeed's launcher gives its ranks 30 seconds, then kills them
STRAGGLERS_GRACE_S = 15.0  # an orphaned rank notices within seconds and ends itself
USER_MISTAKE = 2


def start_training(
    config: Path,
    overrides: Sequence[str],
    settings: LauncherConfig,
    *,
    run_dir: Path,
    wish: StopWish | None = None,
) -> int:
    """Train until the end and return the exit code: the first failing rank's (on several nodes 2, if one of them says
    so), 130, 138 or 143 if a signal ended the run after it had saved, 1 if a signal ended it before that, 0 if it came
    when all was done. `wish` is told the signal, as it comes.

    Raises LauncherError, HostfileError or SlurmError before anything starts, OSError if the run folder takes no log.
    """
    device_count = usable_device_count(os.environ)
    placement = choose_placement(os.environ, settings, run_dir=run_dir, device_count=device_count)
    command = build_command(placement, config, overrides)
    environment = child_environment(
        os.environ,
        placement,
        device_count=device_count,
        core_count=os.cpu_count() or 1,
        launcher_pid=os.getpid(),
    )
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    if isinstance(placement, Slurm):
        placement.hostfile.write_text(format_hostfile(placement.hosts))
    return run_command(command, placement, environment=environment, run_dir=run_dir, wish=wish)


def usable_device_count(environment: Mapping[str, str]) -> int:
    """Devices that torch can use, by CUDA or ROCm; none where the user has told DeepSpeed to use the CPU."""
    if environment.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def run_command(
    command: Sequence[str],
    placement: Placement,
    *,
    environment: Mapping[str, str],
    run_dir: Path,
    wish: StopWish | None = None,
) -> int:
    """Run a command of `build_command` in the foreground; see the module's docstring for what it does.

    Exit code 0 counts only if DeepSpeed has also said of a rank that it ended well: its outer process returns 0 when
    the inner one, which watches the ranks, was killed (0.19).
    """
    log = run_dir / "logs" / "launcher.log"
    withdraw_stop(run_dir)  # of a launcher that was killed
    with log.open("ab", buffering=0) as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        try:
            child = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LauncherError(f"{command[0]} is not in PATH; install it on this machine") from None
        with ForwardedSignals(child, placement, run_dir=run_dir, wish=wish) as signals:
            relay = Relay(child, file)
            code = _wait(child, signals, Silence(run_dir))
            stragglers = not relay.wait(timeout_s=STRAGGLERS_GRACE_S)
            if stragglers:
                signals.send_to_session(signal.SIGKILL)
                relay.wait(timeout_s=STRAGGLERS_GRACE_S)
            if not isinstance(placement, Local):
                code = code_of_nodes(relay.returned, code)
            if code and signals.received is not None:
                state = signals.last_state(code)
                if state == "killed":
                    return 128 + int(signals.received)
                if state == "finished":
                    _say(f"{signals.received.name} came when the run had finished; nothing is lost")
                    return 0
                if signals.have_ended_it(code, state):
                    _say(f"ended by {signals.received.name} without a new checkpoint; see {log}")
                    return 1
    code = 128 - code if code < 0 else code
    # the MPI launchers start the ranks without the part of DeepSpeed that tells how each ended
    tells_success = not isinstance(placement, Hostfile) or placement.settings.remote_launcher == "pdsh"
    if code == 0 and (stragglers or (tells_success and not relay.saw_success)):
        _say(f"DeepSpeed's launcher ended before its ranks did; see {log}")
        return 1
    if code:
        _tell_failure(code, relay, log)
    return code


def code_of_nodes(returned: Sequence[int], code: int) -> int:
    """The user's mistake if a single node has met one, else what was told first. `code` is the launcher's own: pdsh and
    srun return the largest of all, which after a mistake on one node is that of the ranks that waited for it."""
    return USER_MISTAKE if USER_MISTAKE in returned else next(iter(returned), code)


def _wait(child: subprocess.Popen[bytes], signals: ForwardedSignals, silence: Silence) -> int:
    """Until the child ends, or the ranks have been silent for so long that it never would."""
    while True:
        try:
            return child.wait(timeout=POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            if not silence.is_long():
                continue
        _say(f"no rank has given a sign of life for {SILENCE_S:.0f} s; ending it")
        signals.send_to_session(signal.SIGTERM)
        try:
            child.wait(timeout=ENDING_GRACE_S)
        except subprocess.TimeoutExpired:
            signals.send_to_session(signal.SIGKILL)
            child.wait()
        return HANG_EXIT_CODE


class Relay:
    """Two threads that read the child's outputs: each line to the log, and to the screen what is for the user."""

    def __init__(self, child: subprocess.Popen[bytes], log: BinaryIO) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self.held: deque[str] = deque(maxlen=HELD_LINES)
        self.saw_success = False
        self.saw_users_error = False
        self.returned: list[int] = []  # the nodes' exit codes, in the order in which they were told
        self._log = log
        self._threads = [
            threading.Thread(target=self._read, args=(child.stdout, self._show_output), daemon=True),
            threading.Thread(target=self._read, args=(child.stderr, self._show_error), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, *, timeout_s: float) -> bool:
        """Until every process that could still write has ended; False if some have not."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _read(self, pipe: IO[bytes], show: Callable[[str], None]) -> None:
        for content in pipe:
            self._write_log(content)
            show(content.decode(errors="replace").rstrip("\r\n"))

    def _write_log(self, content: bytes) -> None:
        # a full disk must not stop the reading: the ranks would wait for ever to write
        with contextlib.suppress(OSError):
            self._log.write(content)

    def _show_output(self, line: str) -> None:
        self.saw_success = self.saw_success or is_success(line)
        code = returned_code(line)
        if code is not None:
            self.returned.append(code)
        if not is_logger_line(line):
            show(line, sys.stdout)

    def _show_error(self, line: str) -> None:
        if is_users(line):
            self.saw_users_error = True
            show(line, sys.stderr)
        else:
            self.held.append(line)


def _tell_failure(code: int, relay: Relay, log: Path) -> None:
    if code == USER_MISTAKE and relay.saw_users_error:
        return
    lines = error_lines(relay.held)
    said = ":" if lines else ""
    _say(f"failed with {describe_exit(code)}{said}")
    for line in lines:
        show(f"    {line}", sys.stderr)
    _say(f"all output is in {log}")


def _say(text: str) -> None:
    show(f"{ERROR_PREFIX}{text}", sys.stderr)
