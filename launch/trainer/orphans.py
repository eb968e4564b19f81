"""A rank whose launcher is gone ends itself: nobody would read its exit code, and it holds memory, ports and the lock.

Two ways to notice: the parent process changed (a dead parent's children are adopted), or the process that the
launcher named (`SMOLLM2_LAUNCHER_PID`, on the same node only) exists no more. No torch.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

ORPHAN_EXIT_CODE = 71
_POLL_INTERVAL_S = 1.0


def watch_parents(*, launcher_pid: int | None) -> None:
    """Start the daemon thread that ends this process, at once and without cleaning up, when it is an orphan."""
    parent_pid = os.getppid()
    threading.Thread(target=_watch, args=(parent_pid, launcher_pid), name="orphans", daemon=True).start()


def _watch(parent_pid: int, launcher_pid: int | None) -> None:
    while os.getppid() == parent_pid and (launcher_pid is None or _exists(launcher_pid)):
        time.sleep(_POLL_INTERVAL_S)
    # not sys.exit: the main thread may sit in a collective that never ends
    os._exit(ORPHAN_EXIT_CODE)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def parent_of(pid: int) -> int | None:
    """Linux only, elsewhere None; as for a process that does not exist."""
    status = _status(pid)
    return int(status[1]) if status else None


def has_launcher(pid: int) -> bool:
    """Whether a rank on this machine was started by a `smollm2 launch train` that still lives. False where that cannot
    be seen: the rank is another user's, was started by hand or for several machines, or there is no /proc."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    named = [entry.partition(b"=")[2] for entry in environment if entry.startswith(b"SMOLLM2_LAUNCHER_PID=")]
    return any(number.isdigit() and _exists(int(number)) for number in named)


def _is_zombie(pid: int) -> bool:
    """Dead, but not yet waited for by its parent; Linux only, elsewhere False."""
    return _status(pid)[:1] == ["Z"]


def _status(pid: int) -> list[str]:
    """State, parent and what follows them in /proc; empty where there is no such process, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
