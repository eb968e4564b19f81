"""Advisory locks on files: one trainer or data pipeline a run, one service a folder, one export a run.

They end with their process.

Trainer and service may be on different machines only if their file system carries `flock` between them (NFS 4, CephFS,
Lustre with `-o flock`). Where a lock is known to its own machine alone (Lustre with `-o localflock`), both sides
take it without seeing each other: `run_is_alive` is then False for a trainer that runs elsewhere, whose MLflow run
is shown as KILLED, and a lock keeps nobody on another machine out. Run the service on the trainer's machine there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.manifest import CheckpointError
from checkpoint.run_record import LOCK_FILE


class LockBusyError(CheckpointError):
    """Somebody else is at it; it says nothing of what is locked."""


@contextmanager
def exclusive_lock(path: Path, *, busy: str) -> Iterator[None]:
    """Hold a lock file while the block runs. Raises LockBusyError with the text `busy` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockBusyError(busy) from None
        if not os.fstat(file.fileno()).st_nlink:  # its last holder has just removed it
            raise LockBusyError(busy)
        yield


@contextmanager
def claim_output(output: Path, *, busy: str) -> Iterator[None]:
    """Make a new folder, alone: `.lock-NAME` beside it goes with the block. Raises LockBusyError."""
    path = output.with_name(f".lock-{output.name}")
    with exclusive_lock(path, busy=busy):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def wait_for_turn(path: Path) -> Iterator[None]:
    """Read a file and write it back as one act: whoever comes meanwhile waits, for a moment only."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_is_alive(run: Path) -> bool:
    """Whether a trainer, or the driver of a data run, holds `RUN/.lock`."""
    try:
        with (run / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
