"""Tasks on a Ray cluster: that at RAY_ADDRESS, or one of this machine that lives as long as the run.

Ray core, not Ray Data. Results are files on a file system that all nodes share, so that neither a node nor the
driver holds what cannot be done again, and both may be killed. What a node that was cut off still writes has names of
its own (`shards.format.partial_path`) and the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pipeline.interruption import keeping_signal
from pipeline.workers.local import MEMORY_POLL_S, over_memory
from pipeline.workers.memory import anonymous_memory_bytes
from pipeline.workers.quarantine import Quarantine
from pipeline.workers.task import ONE_THREAD, Failed, Finished, Lost, Started, Task, WorkerError, failure

log = logging.getLogger(__name__)

# results are files; what passes through Ray is small
_OBJECT_STORE_BYTES = 100 << 20

_CONNECT_S = 10.0
_CLUSTER_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class _OverMemory:
    how: str


def run_on_ray(
    make_task: Callable[[], Task],
    items: Sequence[Any],
    *,
    workers: int | None = None,
    max_worker_memory_bytes: int | None = None,
    poll_s: float = 0.5,
) -> Iterator[Any]:
    """As `run_in_processes`; `workers` at once, None: as many as the cluster has CPUs, one each.

    The task and the items must be importable on every node. Raises WorkerError if there is no Ray to be had.
    """
    if not items:
        return
    with keeping_signal(), _ray(workers) as ray:
        do = ray.remote(num_returns="streaming", num_cpus=1, max_retries=0)(_do)
        # stored once, not sent with every item: it may hold lists
        content, folder, call = ray.put(pickle.dumps(make_task)), str(Path.cwd()), secrets.token_hex(8)
        waiting = deque(items)
        quarantine = Quarantine()
        busy: dict[Any, _RemoteItem] = {}
        size = _ClusterSize(ray)
        try:
            while waiting or busy:
                while waiting and len(busy) < (workers or size.cpus()):
                    item = waiting.popleft()
                    busy[do.remote(content, folder, call, item, max_worker_memory_bytes)] = _RemoteItem(item)
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=poll_s)
                if ready:  # and whatever else is
                    ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
                else:
                    yield None
                for stream in ready:
                    message = _receive(ray, stream, busy[stream])
                    if isinstance(message, Failed):
                        raise message.error
                    if isinstance(message, _OverMemory):
                        busy[stream].killed_for = message.how
                        ray.cancel(stream, force=True)
                        continue
                    if isinstance(message, Started):
                        busy[stream].worker = message.worker
                    if isinstance(message, Lost):
                        remote = busy.pop(stream)
                        at_once = workers or size.most_cpus
                        is_excused = remote.fell_with_node and quarantine.excuses(message.item, at_once=at_once)
                        if is_excused or quarantine.may_try_again(message.item, worker=remote.worker, how=message.how):
                            waiting.append(message.item)
                    elif isinstance(message, Finished):
                        del busy[stream]
                        quarantine.note_finish()
                    yield message
            quarantine.check_empty()
        finally:
            for stream in busy:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    ray.cancel(stream, force=True)


class _ClusterSize:
    """How many CPUs the cluster has, asked now and then: nodes come and go."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._asked = -_CLUSTER_POLL_S
        self._cpus = self.most_cpus = 1

    def cpus(self) -> int:
        if time.monotonic() - self._asked >= _CLUSTER_POLL_S:
            self._asked = time.monotonic()
            self._cpus = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
            self.most_cpus = max(self.most_cpus, self._cpus)
        return self._cpus


@dataclass(slots=True)
class _RemoteItem:
    item: Any
    worker: str = "Ray"
    killed_for: str | None = None
    fell_with_node: bool = False  # with all that the node did, so perhaps no fault of its own


@contextmanager
def _ray(workers: int | None) -> Iterator[Any]:
    """The module, connected. Only a Ray that was started here is ended here."""
    # one that is started for a run has nobody to tell of it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise WorkerError("executor=ray needs Ray: pip install 'smollm2-pretraining[ray]', or executor=local") from None
    # Ray prints what became of its workers to stdout, which is ours
    with contextlib.redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield ray
            return
        _connect(ray, workers)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if address:
        what = f"no Ray cluster answers at RAY_ADDRESS={address}"
        fix = "start it with `ray start --head`, or unset RAY_ADDRESS to use this machine"
    else:
        what, fix = "Ray cannot be started here", "try executor=local"
        options = {
            "address": "local",
            "num_cpus": workers,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        if address and (port := address.rpartition(":")[2]).isdecimal() and "//" not in address:
            # Ray itself asks for minutes, and then ends the process
            socket.create_connection((address.rpartition(":")[0].strip("[]"), int(port)), timeout=_CONNECT_S).close()
        before = signal.getsignal(signal.SIGTERM)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there, which exits with code 15
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WorkerError(f"{what} ({reason}); {fix}") from None


def _receive(ray: Any, stream: Any, remote: _RemoteItem) -> Any:
    """The next message of a task, or Lost if there will be none."""
    try:
        return ray.get(next(stream))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModuleNotFoundError):
            raise WorkerError(
                f"Ray's workers cannot import what the run needs ({error.cause}); install the same version of this "
                "program on every node"
            ) from None
        raise
    except (ray.exceptions.RayError, StopIteration) as error:
        lost_with_node = (
            ray.exceptions.NodeDiedError,
            ray.exceptions.LocalRayletDiedError,
            ray.exceptions.ObjectLostError,  # what it told is where the node was
        )
        remote.fell_with_node = isinstance(error, lost_with_node) and remote.killed_for is None
        how = "was lost: " + " ".join(str(error).split())[:200].rstrip(".")
        return Lost(remote.item, how=remote.killed_for or how)


def _do(content: bytes, folder: str, call: str, item: Any, max_worker_memory_bytes: int | None) -> Iterator[Any]:
    """Runs on a node: the task in a thread, its messages, and an eye on its memory."""
    yield Started(item, worker=f"pid {os.getpid()} on {_node()}")
    messages: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_work, args=(content, folder, call, item, messages.put), daemon=True).start()
    while True:
        with contextlib.suppress(Empty):
            message = messages.get(timeout=MEMORY_POLL_S)
            yield message
            if isinstance(message, Finished | Failed):
                return
        if max_worker_memory_bytes is not None:
            used = anonymous_memory_bytes(os.getpid())
            if used > max_worker_memory_bytes:
                yield _OverMemory(over_memory(used, max_worker_memory_bytes=max_worker_memory_bytes))


def _work(content: bytes, folder: str, call: str, item: Any, tell: Callable[[Any], None]) -> None:
    try:
        os.environ.update(ONE_THREAD)
        try:
            os.chdir(folder)  # paths in a config are relative to where the command was started
        except OSError:
            raise WorkerError(
                f"{folder} is not there on Ray's node {_node()}; start the run in a folder that all nodes share"
            ) from None
        tell(Finished(_task(content, call)(item, tell)))
    except BaseException as error:
        tell(failure(error))


@functools.lru_cache(maxsize=1)
def _task(content: bytes, call: str) -> Task:
    """Made once in a worker process for each call of `run_on_ray`.

    Ray keeps the process from one item to the next, and for a caller that stays connected from one run to the next,
    when the files that an equal task reads may be others.
    """
    make_task: Callable[[], Task] = pickle.loads(content)
    return make_task()


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
