"""SIGINT, SIGTERM and SIGUSR1 on their way to the ranks, and whether the ranks have saved before they ended.

The first signal is for the ranks alone, which finish their step, save and end; the second ends everything. On this
machine the ranks are reached by their process ids and say by their exit code that they have saved. In a Slurm
allocation scancel reaches them; on a hostfile's hosts only DeepSpeed's launcher does, whose exit code says nothing
of theirs. There `checkpoints/latest` tells: the signal was followed by a save if it has moved since.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from checkpoint.manifest import checkpoints_directory
from launch.cluster.launcher import Local, Placement, Slurm, stop_command
from launch.cluster.output import ERROR_PREFIX, ending_signal, show

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
DOUBLE_DELIVERY_S = 0.5  # one Ctrl-C may come twice: from the terminal, and from make, timeout or srun
SAVING_GRACE_S = 30.0  # what DeepSpeed's launcher gives ranks on other machines, after its outer process has ended
SCANCEL_TIMEOUT_S = 10.0  # a busy controller answers within seconds; one that is gone never does


class ForwardedSignals:
    """A context manager: inside it, signals go to the child of a placement, a session of its own."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        placement: Placement,
        *,
        run_dir: Path,
        on_signal: Callable[[signal.Signals], None] | None = None,
    ) -> None:
        """`on_signal` is told the first signal, as it comes."""
        self.received: signal.Signals | None = None
        self._received_s = 0.0
        self._child, self._placement = child, placement
        self._latest = checkpoints_directory(run_dir) / "latest"
        self._latest_before: tuple[int, int] | None = None
        self._count = 0
        self._on_signal = on_signal
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
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

    def have_saved(self, returncode: int) -> bool:
        """Whether the ranks stopped after saving, as the signal asks for."""
        if isinstance(self._placement, Local):
            # a second signal may have ended ranks that had saved already
            return returncode in (128 + number for number in SIGNALS) or self._has_saved_since()
        deadline_s = time.monotonic() + SAVING_GRACE_S
        while not self._has_saved_since():
            if self._count > 1 or time.monotonic() >= deadline_s:
                return False
            time.sleep(0.1)
        return True

    def have_ended_it(self, returncode: int) -> bool:
        """Whether a run that has not saved ended by the signal, and not by a failure of its own that the code names."""
        return not isinstance(self._placement, Local) or returncode < 0 or ending_signal(returncode) in SIGNALS

    def _has_saved_since(self) -> bool:
        return _identity(self._latest) != self._latest_before

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_s = time.monotonic()
            self._latest_before = _identity(self._latest)
            if self._on_signal is not None:
                self._on_signal(self.received)
        elif time.monotonic() - self._received_s < DOUBLE_DELIVERY_S:
            return
        self._count += 1
        if self._count == 1 and self._ask_ranks(number):
            show(f"{ERROR_PREFIX}{self.received.name}: the ranks finish their step and save; again: now", sys.stderr)
        else:
            self.send_to_session(signal.SIGTERM if self._count <= 2 else signal.SIGKILL)

    def _ask_ranks(self, number: int) -> bool:
        """Send the signal to the ranks alone; False if they cannot be reached."""
        if isinstance(self._placement, Slurm):
            try:
                stopped = subprocess.run(
                    stop_command(self._placement), stdin=subprocess.DEVNULL, timeout=SCANCEL_TIMEOUT_S, check=False
                )
            except (FileNotFoundError, subprocess.TimeoutExpired):
                return False
            return stopped.returncode == 0
        ranks = rank_processes(self._child.pid) if isinstance(self._placement, Local) else []
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(ranks)


def rank_processes(runner_pid: int) -> list[int]:
    """The ranks of this machine: grandchildren of DeepSpeed's outer process. Empty where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # the name in parentheses may hold anything; state and parent follow it
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    watchers = {pid for pid, parent in parents.items() if parent == runner_pid}
    return [pid for pid, parent in parents.items() if parent in watchers]


def _identity(file: Path) -> tuple[int, int] | None:
    """Differs after each atomic replacement of a file; None while there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
