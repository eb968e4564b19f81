"""Where units are done: worker processes of this machine. What a unit is, they do not know.

Workers are not forked off the parent, which has threads (Arrow, the tokenizer's training), but begin as
`worker_start.py` says. A worker dies with its parent, whatever kills that, and a worker that dies is an error of the
whole, not a wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from pipeline.document import PipelineError
from pipeline.worker_start import begin_as_worker, worker_context

Result = TypeVar("Result")

# does one item; whatever it hands to its second argument reaches the parent at once
Task = Callable[[Any, Callable[[Any], None]], Any]


class WorkerError(PipelineError):
    """A worker process died in the middle of its work."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """The result of an item, as against news of one that is being done."""

    result: Result


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    make_task: Callable[[], Task], items: Sequence[Any], *, workers: int, poll_s: float = 0.5
) -> Iterator[Finished[Any] | Any | None]:
    """Do every item; yields `Finished(result)` in the order of completion, news as told, None when nothing happens.

    `make_task` is called in each worker and must be picklable. An exception of a task is raised here after all workers
    are stopped. Raises WorkerError if a worker is killed.
    """
    waiting = list(reversed(items))
    context = worker_context()
    crew: dict[Connection, BaseProcess] = {}
    at_work: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(items))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(theirs, make_task, dict(os.environ)), daemon=True
            )
            process.start()
            theirs.close()
            crew[ours] = process
            _hand_out(ours, waiting, at_work)
        while at_work:
            ready = wait(list(at_work), timeout=poll_s)
            if not ready:
                yield None
            for connection in ready:
                assert isinstance(connection, Connection)
                message = _receive(connection, crew[connection], at_work[connection])
                if isinstance(message, _Failed):
                    raise message.error
                if isinstance(message, Finished):
                    _hand_out(connection, waiting, at_work)
                yield message
    finally:
        for connection, process in crew.items():
            connection.close()
            process.kill()
            process.join()


def _hand_out(connection: Connection, waiting: list[Any], at_work: dict[Connection, Any]) -> None:
    if waiting:
        at_work[connection] = waiting.pop()
        # if the worker is dead, the next receive says of what
        with contextlib.suppress(BrokenPipeError):
            connection.send(at_work[connection])
    else:
        del at_work[connection]


def _receive(connection: Connection, process: BaseProcess, item: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):  # the end of the stream, at the beginning or in the middle of a message
        process.join(timeout=10)
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with code {code}"
        )
        raise WorkerError(
            f"a worker (pid {process.pid}) {how} while doing unit {getattr(item, 'index', item)}; nothing is lost: "
            "run the same command to go on, with fewer workers (workers=1) if memory was short"
        ) from None


def _work(connection: Connection, make_task: Callable[[], Task], environment: Mapping[str, str]) -> None:
    """The life of a worker process."""
    begin_as_worker(environment)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    try:
        task = make_task()
        while True:
            try:
                item = connection.recv()
            except EOFError:
                return  # the parent needs no more
            connection.send(Finished(task(item, connection.send)))
    except BaseException as error:
        error.add_note(f"in worker {os.getpid()}:\n{traceback.format_exc()}")
        connection.send(_Failed(error))
