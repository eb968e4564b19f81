"""Who reads a checkpoint holds it, and what is held is not deleted: trainer and service keep to it.

A reader has a shared `flock` on the checkpoint's manifest; the pruner, which needs an exclusive one, passes over a
checkpoint that somebody holds. The locks end with their process. Where a file system does not carry `flock` between
machines (see `lock.py`), readers elsewhere are not seen.

Behind the door `manifest.py`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.file_records import MANIFEST_FILE
from checkpoint.records import CheckpointError


@contextmanager
def hold_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Keep a checkpoint from being pruned while the block runs. Any number of readers hold it together.

    Raises CheckpointError if it is not there, or was deleted at this moment.
    """
    path = checkpoint / MANIFEST_FILE
    gone = f"checkpoint {checkpoint} does not exist; `smollm2 checkpoint list RUN` shows those that do"
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise CheckpointError(gone) from None
    with file:
        # who deletes has its lock for a rename's time only
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_still(file.fileno(), path):
            raise CheckpointError(gone)
        yield


@contextmanager
def claim_checkpoint(checkpoint: Path) -> Iterator[bool]:
    """For who deletes: whether nobody reads the checkpoint, and nobody can begin to while the block runs."""
    path = checkpoint / MANIFEST_FILE
    try:
        # NFS gives an exclusive lock on a file open for writing only
        file = path.open("r+b")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_still(file.fileno(), path)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is the one of that name: it may have been moved before the lock was got."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
