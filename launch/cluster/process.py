"""Starts DeepSpeed's launcher as a child, relays what it says, passes signals on, and returns its exit code.

All output goes to RUN/logs/launcher.log. To the screen go the lines of the ranks; DeepSpeed's own log lines do not,
and what stands on stderr is held back until the end, where it is told once if the run failed.

Signals: the child is a session of its own, so that a terminal's Ctrl-C reaches it only through here. The first SIGINT
or SIGTERM goes to the ranks of this machine alone, which finish their step, save and end; DeepSpeed's launcher would
kill them after 30 seconds. The second ends the session. Ranks on other machines can only be reached through DeepSpeed,
so there the first goes to the session as well. DeepSpeed's pdsh launcher then runs `pkill -f deepspeed.launcher.launch`
on every host, which ends all DeepSpeed jobs of that user there.
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
from types import FrameType, TracebackType
from typing import IO, BinaryIO, Self, TextIO

from launch.cluster.hostfile import format_hostfile
from launch.cluster.launcher import (
    Hostfile,
    LauncherError,
    Local,
    RemoteLauncher,
    Slurm,
    build_command,
    child_environment,
    choose_placement,
)
from launch.cluster.output import ERROR_PREFIX, describe_exit, error_lines, is_logger_line, is_success, is_users

HELD_LINES = 1000
STRAGGLERS_GRACE_S = 15.0  # an orphaned rank notices within seconds and ends itself
USER_MISTAKE = 2


def start_training(
    config: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path,
    ranks_per_node: int | None = None,
    hostfile: Path | None = None,
    launcher: RemoteLauncher = "pdsh",
    launcher_args: str = "",
    master_addr: str | None = None,
    master_port: int | None = None,
    ssh_port: int | None = None,
) -> int:
    """Train until the end and return the exit code: the first failing rank's, 130 or 143 after a signal.

    Raises LauncherError, HostfileError or SlurmError before anything starts, OSError if the run folder takes no log.
    """
    device_count = cuda_device_count()
    placement = choose_placement(
        os.environ,
        run_dir=run_dir,
        device_count=device_count,
        ranks_per_node=ranks_per_node,
        hostfile=hostfile,
        launcher=launcher,
        launcher_args=launcher_args,
        master_addr=master_addr,
        master_port=master_port,
        ssh_port=ssh_port,
    )
    command = build_command(placement, config, overrides)
    environment = child_environment(
        os.environ,
        placement,
        device_count=device_count,
        core_count=os.cpu_count() or 1,
        launcher_pid=os.getpid(),
    )
    log = run_dir / "logs" / "launcher.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(placement, Slurm):
        placement.hostfile.write_text(format_hostfile(placement.hosts))
    # the MPI launchers start the ranks without the part of DeepSpeed that tells how each ended
    tells_success = not isinstance(placement, Hostfile) or placement.launcher == "pdsh"
    is_local = isinstance(placement, Local)
    return run_command(command, environment=environment, log=log, is_local=is_local, tells_success=tells_success)


def cuda_device_count() -> int:
    """Devices that torch can use, by CUDA or ROCm."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def run_command(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, is_local: bool, tells_success: bool
) -> int:
    """Run a command of `build_command` in the foreground; see the module's docstring for what it does.

    `tells_success`: exit code 0 counts only if DeepSpeed has also said of a rank that it ended well. Its outer process
    returns 0 when the inner one, which watches the ranks, was killed (0.19).
    """
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
        with ForwardedSignals(child, is_local=is_local) as signals:
            relay = Relay(child, file)
            code = child.wait()
            stragglers = not relay.wait(timeout_s=STRAGGLERS_GRACE_S)
            if stragglers:
                signals.send_to_session(signal.SIGKILL)
                relay.wait(timeout_s=STRAGGLERS_GRACE_S)
    code = 128 - code if code < 0 else code
    if signals.received is not None:
        return code and 128 + int(signals.received)
    if code == 0 and (stragglers or (tells_success and not relay.saw_success)):
        print(f"{ERROR_PREFIX}DeepSpeed's launcher ended before its ranks did; see {log}", file=sys.stderr)
        return 1
    if code:
        _tell_failure(code, relay, log)
    return code


class Relay:
    """Two threads that read the child's outputs: each line to the log, and to the screen what is for the user."""

    def __init__(self, child: subprocess.Popen[bytes], log: BinaryIO) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self.held: deque[str] = deque(maxlen=HELD_LINES)
        self.saw_success = False
        self.saw_users_error = False
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
        if not is_logger_line(line):
            _show(line, sys.stdout)

    def _show_error(self, line: str) -> None:
        if is_users(line):
            self.saw_users_error = True
            _show(line, sys.stderr)
        else:
            self.held.append(line)


class ForwardedSignals:
    """A context manager: inside it, SIGINT and SIGTERM go to the child."""

    def __init__(self, child: subprocess.Popen[bytes], *, is_local: bool) -> None:
        self.received: signal.Signals | None = None
        self._child = child
        self._is_local = is_local
        self._count = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def send_to_session(self, number: signal.Signals) -> None:
        # the group outlives its first process while one of the ranks does
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.received = self.received or signal.Signals(number)
        ranks = rank_processes(self._child.pid) if self._is_local and self._count == 1 else []
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if ranks:
            _show(f"{ERROR_PREFIX}{self.received.name}: the ranks finish their step and save; again: now", sys.stderr)
        else:
            self.send_to_session(signal.SIGTERM if self._count <= 2 else signal.SIGKILL)


def rank_processes(runner_pid: int) -> list[int]:
    """The ranks of this machine: grandchildren of DeepSpeed's outer process. Empty where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # the name in parentheses may hold anything; state and parent follow it
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    watchers = {pid for pid, parent in parents.items() if parent == runner_pid}
    return [pid for pid, parent in parents.items() if parent in watchers]


def _tell_failure(code: int, relay: Relay, log: Path) -> None:
    if code == USER_MISTAKE and relay.saw_users_error:
        return
    lines = error_lines(relay.held)
    said = ":" if lines else ""
    print(f"{ERROR_PREFIX}failed with {describe_exit(code)}{said}", file=sys.stderr)
    for line in lines:
        print(f"    {line}", file=sys.stderr)
    print(f"{ERROR_PREFIX}all output is in {log}", file=sys.stderr)


def _show(line: str, screen: TextIO) -> None:
    # a reader that has gone away (head, a closed terminal) must not end the training
    with contextlib.suppress(OSError, ValueError):
        print(line, file=screen, flush=True)
