"""A wish to stop that reaches the ranks through the run's folder, whatever machine they are on. No torch.

    RUN/stop-requested   the signal's name, `SIGTERM` or another of STOP_SIGNALS

On several nodes a signal itself reaches the ranks only by way of DeepSpeed's launcher, which gives them 30 seconds and
then kills them (0.19, `terminate_process_tree`): too few for the save of a large model. A file gives them what they
need. `launch train` writes it and takes it away; who started `deepspeed` by hand may write it too.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

from launch.signals import STOP_SIGNALS

STOP_FILE = "stop-requested"
LOOK_INTERVAL_S = 1.0


def request_stop(run_dir: Path, number: signal.Signals) -> None:
    """Raises OSError."""
    (run_dir / STOP_FILE).write_text(f"{number.name}\n", encoding="utf-8")


def withdraw_stop(run_dir: Path) -> None:
    """Takes the request away, if there is one and this user may."""
    with suppress(OSError):
        (run_dir / STOP_FILE).unlink(missing_ok=True)


class StopRequests:
    """One rank's look at them, at most once a second."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._looked_s = float("-inf")

    def withdraw(self) -> None:
        withdraw_stop(self._run_dir)

    def look(self) -> signal.Signals | None:
        """The signal that is asked for; None also where the folder cannot be read: a stop may wait, a run may not end
        for it."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return None
        self._looked_s = now_s
        try:
            # listed anew each time, which makes NFS ask its server; a name that was not there it remembers for a minute
            if not any(path.name == STOP_FILE for path in self._run_dir.iterdir()):
                return None
            name = (self._run_dir / STOP_FILE).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return next((number for number in STOP_SIGNALS if number.name == name), None)
