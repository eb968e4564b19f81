"""Advisory locks on files: one trainer a run, one service a folder, one export a run. They end with their process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.manifest import CheckpointError

TRAINER_LOCK = ".lock"


@contextmanager
def exclusive_lock(path: Path, *, busy: str) -> Iterator[None]:
    """Hold a lock file while the block runs. Raises CheckpointError with the text `busy` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(busy) from None
        yield


def trainer_is_alive(run: Path) -> bool:
    """Whether a trainer holds `RUN/.lock`."""
    try:
        with (run / TRAINER_LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
