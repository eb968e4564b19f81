"""How processes for workers begin: forked off a server that has imported what they need.

The server is a Python of its own without threads, started as early as possible: it imports while the command reads its
config and its tokenizer, and a process then begins in milliseconds, not after half a second of imports. It lives as
long as this process and its workers do.
"""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

# what a unit needs, and no more: on a small input the first workers wait for it
_PRELOADED = ["pipeline.workers.local", "pipeline.unit", "pipeline.sources.jsonl", "splintr"]


def worker_context() -> ForkServerContext | SpawnContext:
    """What makes processes; elsewhere than on Linux each imports for itself."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def warm_up() -> None:
    """Let the server begin to import. To be called before anything that takes time; more than once does no harm."""
    if sys.platform == "linux":
        worker_context()
        forkserver.ensure_running()


def begin_as_worker(environment: Mapping[str, str]) -> None:
    """To be called first in a new process: takes the environment that its parent has now, and dies with its parent.

    Linux ends us at once, however the parent dies and whatever we are doing: the pipe that only the parent holds open
    is set to send SIGIO when it closes. Elsewhere our own closed pipe ends us, at the end of a unit.
    """
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # what came with the fork is never garbage, and looking at it would copy its pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():
        os._exit(1)  # it died before we asked
