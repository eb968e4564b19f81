"""DeepSpeed's shared-memory collective for CPU ranks: compiling it, and not leaking its memory.

Torch has two traps here. Its cache is shared by all environments of a user, which then overwrite each other's
libraries, even while one is being loaded; so ours lies in the environment itself. And it marks a build by a file that
a killed build leaves behind, on which every later start waits for ever; so one process at a time builds, under a lock
that the kernel releases, and whoever holds that lock may remove the mark.

DeepSpeed never unlinks the collective's buffers (0.19): each run would keep 66 MB of /dev/shm a rank until the machine
is restarted.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

_DIRECTORY_VARIABLE = "TORCH_EXTENSIONS_DIR"
_NAME = "deepspeed_shm_comm"
_SHARED_MEMORY = Path("/dev/shm")


def choose_build_directory() -> None:
    """Set where torch builds, unless the user has, or the environment is read-only. Before torch is imported."""
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault(_DIRECTORY_VARIABLE, str(Path(sys.prefix) / "torch_extensions"))


def load_cpu_operator(say: Callable[[str], None]) -> None:
    """Build it if need be, and load it; afterwards DeepSpeed finds it loaded."""
    from deepspeed.comm.torch import build_shm_op

    root = os.environ.get(_DIRECTORY_VARIABLE)
    if root is None:
        build_shm_op()
        return
    directory = Path(root) / _NAME
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / f"{_NAME}.so").is_file():
        say("compiling DeepSpeed's collective for CPUs, which is done once and takes about a minute")
    with (Path(root) / f".{_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "lock").unlink(missing_ok=True)
        build_shm_op()


def unlink_buffer(*, rank: int, address: str, port: str) -> None:
    """Take the name off this rank's buffer, which goes with the last process that has it mapped, however that ends.

    Only after a barrier: all ranks must have opened it.
    """
    # as named in csrc/cpu/comm/shm.cpp
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"
    (_SHARED_MEMORY / name).unlink(missing_ok=True)
