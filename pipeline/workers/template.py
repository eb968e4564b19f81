"""Worker processes of this machine, each with its task, which a template has made once and all are forked off.

To make a task may mean to load tokenizers, models and lists: a worker has them a few milliseconds after it is wanted,
however many workers there are, and they share the memory. The template is a process of one thread, forked off the
server of `worker_start.py`; its life is in `template_process.py`. It dies with its parent, and workers die with their
template, whatever kills that.

Elsewhere than on Linux nothing is forked: each worker makes a task of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Protocol

from pipeline.worker_start import worker_context
from pipeline.workers.task import Failed, Task, WorkerError
from pipeline.workers.template_process import MAX_DYING_S, End, Fork, Kill, Life, Make, Prepare, Wait, serve, work_alone

log = logging.getLogger(__name__)

MAX_STARTS = 10
START_AGAIN_S = 0.2


class WorkerProcess(Protocol):
    pid: int

    def kill(self) -> None:
        """Does not wait for its end."""

    def wait(self) -> int | None:
        """Until it has ended, or is killed for taking too long: its exit code, or minus the number of the signal. None
        if its template was killed, and it with that."""


class Template:
    """What makes workers of one task."""

    def __init__(self, live: Life) -> None:
        """`live` must be picklable, and so must be all that is told to it."""
        self._live = live
        self._pickled_task: bytes | None = None
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_told = False
        self._is_ready = False
        self._is_ending = False
        self._deaths = 0
        self._spawned: list[_Spawned] = []

    def prepare(self, call: Callable[[], object]) -> None:
        """Let the process begin and call this, while we find out what the task is. It is a hint: nobody hears what it
        returns or raises, and where the process dies, or nothing is forked, it is not called."""
        if sys.platform == "linux":
            with contextlib.suppress(WorkerError, OSError):
                self._begin().send(Prepare(call))

    def make(self, make_task: Callable[[], Task]) -> None:
        """How to make the task; it is made when the first worker is wanted."""
        if self._is_told:  # of another
            self.close()
        self._pickled_task = pickle.dumps(make_task)

    def start_worker(self) -> tuple[WorkerProcess, Connection]:
        """A new worker, and our end of its pipe. The first waits until the task is made.

        Raises WorkerError if there is none to be had, and what making the task raised.
        """
        if sys.platform != "linux":
            assert self._pickled_task is not None, "no task"
            process, connection = _start(work_alone, self._pickled_task, self._live)
            self._spawned.append(_Spawned(process))
            return self._spawned[-1], connection
        reason = ""
        for _ in range(MAX_STARTS):
            ours, theirs = worker_context().Pipe()
            with theirs:
                try:
                    worker = self._fork(theirs)
                except BaseException:
                    ours.close()
                    raise
            if isinstance(worker, _Forked):
                return worker, ours
            ours.close()
            reason = worker
            time.sleep(START_AGAIN_S)
        raise _no_worker(reason)

    def _fork(self, connection: Connection) -> _Forked | str:
        """A worker at that end of a pipe, or why there is none. Raises what making the task raised."""
        process_end = self._begin()
        assert self._process is not None
        assert self._process.pid is not None
        assert self._pickled_task is not None, "no task"
        try:
            if not self._is_told:
                process_end.send(Make(self._pickled_task))
                self._is_told = True
            process_end.send(Fork())
            send_handle(process_end, connection.fileno(), self._process.pid)
            answer = process_end.recv()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            return self._note_death()
        if isinstance(answer, Failed):
            raise answer.error
        self._is_ready = True
        return str(answer) if isinstance(answer, OSError) else _Forked(answer, process_end)

    def _begin(self) -> Connection:
        """Our end of the pipe of the process, which begins if there is none. Raises WorkerError."""
        if self._is_ending:
            self.close()
        if self._process is None or self._connection is None:
            self._process, self._connection = _start(serve, self._live)
        return self._connection

    def _note_death(self) -> str:
        """Of the template: the next worker is forked off another. Raises WorkerError if it has died too often."""
        assert self._process is not None
        self._process.join(timeout=MAX_DYING_S)
        code, is_own_fault = self._process.exitcode, not self._is_ready and (self._process.exitcode or 0) > 0
        how = f"the process that workers are forked off ended with code {code}"
        self.close()
        if is_own_fault:
            raise WorkerError(
                f"{how} as it began, and what it printed says why; each process imports the script that was started: "
                'let yours do nothing on import, and run a pipeline under `if __name__ == "__main__":`'
            )
        self._deaths += 1
        if self._deaths >= MAX_STARTS:
            raise _no_worker(f"{how}, {self._deaths} times")
        log.warning("%s; another is started", how)
        return how

    def end(self) -> None:
        """Kill what forked workers there are. Does not wait for their end: `close` does, or the next start."""
        if self._is_ready and not self._is_ending and self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(End())
            self._is_ending = True

    def close(self) -> None:
        """Kill what workers there are, and wait for their end; for those of a killed template the kernel does it."""
        self.end()
        if self._process is not None and self._connection is not None:
            if self._is_ending:
                with contextlib.suppress(OSError, EOFError):
                    while self._connection.poll(MAX_DYING_S):
                        self._connection.recv()
            if self._process.is_alive():  # else its pid may be another process's by now
                self._process.kill()
            self._connection.close()
            self._process.join()
        for worker in self._spawned:
            worker.kill()
        for worker in self._spawned:
            worker.wait()
        self._process = self._connection = None
        self._is_told = self._is_ready = self._is_ending = False
        self._spawned = []


class _Forked:
    """A child of its template: only that may ask how it ended, and until it has, the pid is no other process's."""

    def __init__(self, pid: int, template_connection: Connection) -> None:
        self.pid = pid
        self._template_connection = template_connection
        self._has_ended = False
        self._code: int | None = None

    def kill(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(OSError):  # of a dead template the workers die
                self._template_connection.send(Kill(self.pid))

    def wait(self) -> int | None:
        if not self._has_ended:
            with contextlib.suppress(OSError, EOFError):
                self._template_connection.send(Wait(self.pid))
                self._code = self._template_connection.recv()
            self._has_ended = True
        return self._code


class _Spawned:
    """A worker that is multiprocessing's."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        self._process.join(timeout=MAX_DYING_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _start(target: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """A new process, and our end of its pipe. Raises WorkerError."""
    context = worker_context()
    for _ in range(MAX_STARTS):
        ours, theirs = context.Pipe()
        process: BaseProcess = context.Process(target=target, args=(theirs, *arguments, dict(os.environ)), daemon=True)
        try:
            process.start()
        except (OSError, EOFError) as error:
            # most likely the server was killed; multiprocessing starts another once it has seen that
            ours.close()
            reason = str(error)
            time.sleep(START_AGAIN_S)
        else:
            return process, ours
        finally:
            theirs.close()
    raise _no_worker(reason)


def _no_worker(reason: str) -> WorkerError:
    return WorkerError(
        f"no worker process can be started ({reason}); free some memory and run the same command to go on"
    )
