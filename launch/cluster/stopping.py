"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 on their way to the ranks, and whether the ranks have saved before they ended.

The first signal is for the ranks alone, which finish their step, save and end; the second ends everything. On this
machine the ranks are reached by their process ids. Those on other machines are reached through the run's folder
(`launch/trainer/stop_request.py`): a signal would come to DeepSpeed's launcher there, which lets them live for 30
seconds. What became of it the event log tells, in the words of rank 0 (`state`: killed, finished or failed).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from checkpoint.events import events_file, read_events
from launch.cluster.launcher import Local, Placement
from launch.cluster.output import ERROR_PREFIX, ending_signal, show
from launch.signals import STOP_SIGNALS, SignalHandler
from launch.trainer.stop_request import request_stop, withdraw_stop

DOUBLE_DELIVERY_S = 0.5  # one Ctrl-C may come twice: from the terminal, and from make, timeout or srun
TOLD_WITHIN_S = 30.0  # how long what another node has written may stay unseen, and ranks there outlive the launcher


class StopWish(SignalHandler):
    """What asks the whole supervision of a run to end: as a context manager between attempts, and by `note`."""

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None
        self._came = threading.Event()

    def note(self, number: signal.Signals) -> None:
        self.received = self.received or number
        self._came.set()

    def wait(self, seconds: float) -> bool:
        """Whether one came meanwhile."""
        return self._came.wait(seconds)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.note(signal.Signals(number))


class ForwardedSignals(SignalHandler):
    """A context manager: inside it, signals go to the child of a placement, a session of its own."""

    def __init__(
        self, child: subprocess.Popen[bytes], placement: Placement, *, run_dir: Path, wish: StopWish | None = None
    ) -> None:
        """`wish` is told the first signal, as it comes; one that it has got already is forwarded at once."""
        super().__init__()
        self.received: signal.Signals | None = None
        self._received_s = 0.0
        self._child, self._placement, self._run_dir, self._wish = child, placement, run_dir, wish
        self._told_bytes = size_of(events_file(run_dir))
        self._count = 0

    def __enter__(self) -> Self:
        super().__enter__()
        if self._wish is not None and self._wish.received is not None:
            self.handle(self._wish.received, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        withdraw_stop(self._run_dir)

    def send_to_session(self, number: signal.Signals) -> None:
        # the group outlives its first process while one of the ranks does
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def last_state(self, returncode: int) -> str | None:
        """How the run itself says that it ended, after a signal: `killed` when the ranks have saved, `finished`,
        `failed`; None where a rank was ended before it could say it."""
        if isinstance(self._placement, Local) and returncode in (128 + number for number in STOP_SIGNALS):
            return "killed"
        deadline_s = time.monotonic() + (0 if isinstance(self._placement, Local) else TOLD_WITHIN_S)
        while (state := self._told_state()) is None and self._count < 2 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return state

    def have_ended_it(self, returncode: int, state: str | None) -> bool:
        """Whether a run that has neither saved nor finished ended by the signals, and not by a failure of its own."""
        if isinstance(self._placement, Local):
            return returncode < 0 or ending_signal(returncode) in STOP_SIGNALS
        # the exit code of DeepSpeed's launcher says nothing of ranks on other machines
        return self._count > 1 or state is None

    def _told_state(self) -> str | None:
        states = [
            str(event.fields["state"])
            for event, _ in read_events(events_file(self._run_dir), offset=self._told_bytes)
            if event.kind == "state"
        ]
        return states[-1] if states and states[-1] != "running" else None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_s = time.monotonic()
            if self._wish is not None:
                self._wish.note(self.received)
        elif time.monotonic() - self._received_s < DOUBLE_DELIVERY_S:
            return
        self._count += 1
        if self._count == 1 and self._ask_ranks(self.received):
            show(f"{ERROR_PREFIX}{self.received.name}: the ranks finish their step and save; again: now", sys.stderr)
        else:
            self.send_to_session(signal.SIGTERM if self._count <= 2 else signal.SIGKILL)

    def _ask_ranks(self, number: signal.Signals) -> bool:
        """Let the ranks alone know; False if they cannot be reached."""
        if not isinstance(self._placement, Local):
            try:
                request_stop(self._run_dir, number)
            except OSError:
                return False
            return True
        ranks = rank_processes(self._child.pid)
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


def size_of(file: Path) -> int:
    """In bytes; 0 where there is none."""
    return file.stat().st_size if file.is_file() else 0
