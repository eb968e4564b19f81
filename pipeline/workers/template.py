"""Worker processes of this machine, each with its task, which a template has made once and all are forked off.

To make a task may mean to load tokenizers, models and lists: a worker has them a few milliseconds after it is wanted,
however many workers there are, and they share the memory. The template, a process without threads, is forked off the
server of `worker_start.py`. It dies with its parent, and workers die with their template, whatever kills that.

Elsewhere than on Linux a template forks nothing: each worker makes a task of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import NoReturn, Protocol

from pipeline.worker_start import begin_as_worker, worker_context
from pipeline.workers.task import ONE_THREAD, Failed, Task, WorkerError, failure

MAX_STARTS = 10
START_AGAIN_S = 0.2
# from the end of a worker's pipe to the end of the worker
MAX_DYING_S = 10.0

_PR_SET_PDEATHSIG = 1  # of prctl.h

# the life of a worker: what it does with our pipe's other end and its task
Life = Callable[[Connection, Task], None]


class WorkerProcess(Protocol):
    pid: int

    def kill(self) -> None:
        """Does not wait for its end."""

    def wait(self) -> int:
        """Until it has ended: its exit code, or minus the number of the signal. It is killed if it takes too long."""


class Template:
    """What makes workers of one task."""

    def __init__(self, make_task: Callable[[], Task], live: Life) -> None:
        """`make_task` and `live` must be picklable; the task is made when the first worker is wanted."""
        self._make_task = make_task
        self._live = live
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_ready = False
        self._spawned: list[_Spawned] = []

    def start_worker(self) -> tuple[WorkerProcess, Connection]:
        """A new worker, and our end of its pipe. Raises WorkerError if there is none to be had, and what making the
        task raised."""
        if sys.platform != "linux":
            process, connection = _start(_work_alone, self._make_task, self._live)
            self._spawned.append(_Spawned(process))
            return self._spawned[-1], connection
        reason = ""
        for _ in range(MAX_STARTS):
            ours, theirs = worker_context().Pipe()
            try:
                answer, template = self._ask_for_worker(theirs)
            except (OSError, EOFError):
                self.close()  # it was killed, as by the kernel when memory is short; its workers die too
                reason = "what they are forked off is killed each time"
            else:
                if isinstance(answer, int):
                    return _Forked(answer, template), ours
                if isinstance(answer, Failed):
                    raise answer.error
                reason = str(answer)
                time.sleep(START_AGAIN_S)
            finally:
                theirs.close()
            ours.close()
        raise _no_worker(reason)

    def _ask_for_worker(self, connection: Connection) -> tuple[int | Failed | OSError, Connection]:
        """Its pid, or why there is none; and whom we have asked."""
        if self._process is None or self._connection is None:
            self._process, self._connection = _start(_serve, self._make_task, self._live)
        assert self._process.pid is not None
        self._connection.send(None)
        send_handle(self._connection, connection.fileno(), self._process.pid)
        answer = self._connection.recv()
        self._is_ready = True
        return answer, self._connection

    def close(self) -> None:
        """Kill what workers there are, and wait for their end."""
        if self._process is not None and self._connection is not None:
            self._connection.close()
            if self._is_ready:
                self._process.join(timeout=MAX_DYING_S)
            self._process.kill()
            self._process.join()
        for worker in self._spawned:
            worker.kill()
        for worker in self._spawned:
            worker.wait()
        self._process = self._connection = None
        self._is_ready = False
        self._spawned = []


class _Forked:
    """A child of its template: only that may ask how it ended, and until it has, the pid is no other process's."""

    def __init__(self, pid: int, template: Connection) -> None:
        self.pid = pid
        self._template = template
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(OSError):  # of a dead template the workers die
                self._template.send((self.pid, signal.SIGKILL))

    def wait(self) -> int:
        if self._code is None:
            try:
                self._template.send((self.pid, None))
                self._code = self._template.recv()
            except (OSError, EOFError):
                self._code = -signal.SIGKILL
        assert self._code is not None
        return self._code


class _Spawned:
    """A worker that is multiprocessing's."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join(timeout=MAX_DYING_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _start(target: Callable[..., None], make_task: Callable[[], Task], live: Life) -> tuple[BaseProcess, Connection]:
    """A new process, and our end of its pipe. Raises WorkerError."""
    context = worker_context()
    for _ in range(MAX_STARTS):
        ours, theirs = context.Pipe()
        process: BaseProcess = context.Process(
            target=target, args=(theirs, make_task, live, dict(os.environ)), daemon=True
        )
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


def _work_alone(
    connection: Connection, make_task: Callable[[], Task], live: Life, environment: Mapping[str, str]
) -> None:
    """The life of a worker that is forked off nothing."""
    begin_as_worker(environment)
    os.environ.update(ONE_THREAD)
    try:
        task = make_task()
    except BaseException as error:
        connection.send(failure(error))
    else:
        live(connection, task)


def _serve(connection: Connection, make_task: Callable[[], Task], live: Life, environment: Mapping[str, str]) -> None:
    """The life of a template. Told None, it forks a worker, whose end of a pipe follows, and answers its pid; told a
    pid, it sends that a signal, or, without one, answers how it has ended."""
    begin_as_worker(environment)
    os.environ.update(ONE_THREAD)
    try:
        task = make_task()
    except BaseException as error:
        connection.send(failure(error))
        signal.pause()  # to end now could be earlier than the question
    gc.freeze()  # as in `begin_as_worker`: workers would copy what is looked at
    living: set[int] = set()
    try:
        while True:
            wanted = connection.recv()
            if wanted is None:
                answer = _fork(connection, recv_handle(connection), task, live)
                if isinstance(answer, int):
                    living.add(answer)
                connection.send(answer)
            elif wanted[1] is None:
                connection.send(_how_it_ended(wanted[0]))
                living.remove(wanted[0])
            else:
                os.kill(*wanted)
    except (EOFError, OSError):
        pass  # the parent needs no more
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        for pid in living:
            os.waitpid(pid, 0)


def _fork(connection: Connection, handle: int, task: Task, live: Life) -> int | OSError:
    """Its pid, or why there is none."""
    template = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return error
    else:
        if pid == 0:
            connection.close()
            _work_forked(Connection(handle), task, live, template=template)
        return pid
    finally:
        os.close(handle)


def _work_forked(connection: Connection, task: Task, live: Life, *, template: int) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == template:  # else it died before we asked
            live(connection, task)
            code = 0
    finally:
        os._exit(code)  # not the template's own way out


def _how_it_ended(pid: int) -> int:
    deadline = time.monotonic() + MAX_DYING_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
