"""One service a folder of runs: a lease that ends with its process, however it ends.

`RUNS_DIR/.service.lock` is held by `flock`, which a kill -9 releases; the text in it says who holds it.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.manifest import CheckpointError

LEASE_FILE = ".service.lock"


@contextmanager
def hold_lease(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs. Raises CheckpointError, naming the holder, if another process does."""
    with (folder / LEASE_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "which has just begun"
            raise CheckpointError(f"another service is at work in {folder} ({holder}); end it first") from None
        began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {began}\n")
        file.flush()
        yield
