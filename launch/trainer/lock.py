"""Who may write to a run's folder. No torch; nothing here needs another rank.

RUN/.lock   held by rank 0 for the life of its process; names its pid and host
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from checkpoint.events import LOCK_FILE
from launch.config import TrainingError
from launch.trainer.orphans import has_launcher

LOCK_PATIENCE_S = 15.0


def hold_lock(run_dir: Path, *, patience_s: float = LOCK_PATIENCE_S) -> int:
    """Take the folder for this process until it ends; the descriptor is the lock.

    Waits, because the ranks of a run that was just killed need a moment to go. Raises TrainingError.
    """
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise _at_work(run_dir, holder) from None
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def refuse_if_at_work(run_dir: Path) -> None:
    """Before any rank starts: raises TrainingError if a trainer of this machine, whose launcher lives, has the folder.

    One that has lost its launcher ends within seconds, and of one on another machine nothing is known here: `hold_lock`
    waits for those.
    """
    try:
        with (run_dir / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return
    except FileNotFoundError:
        return
    except BlockingIOError:
        holder = (run_dir / LOCK_FILE).read_text(errors="replace").strip()
    pid, _, host = holder.removeprefix("pid ").partition(" on ")
    if host == socket.gethostname() and pid.isdecimal() and has_launcher(int(pid)):
        raise _at_work(run_dir, holder)


def _at_work(run_dir: Path, holder: str) -> TrainingError:
    return TrainingError(
        f"another trainer ({holder or 'an unknown process'}) is at work in {run_dir}; "
        "wait for it, end it, or choose another run_dir"
    )
