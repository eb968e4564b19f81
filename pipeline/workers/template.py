"""Worker processes of this machine, each with its task, which a template has made once and all are forked off.

To make a task may mean to load tokenizers, models and lists: a worker has them a few milliseconds after it is wanted,
however many workers there are, and they share the memory. The template is a process of one thread, forked off the
server of `worker_start.py`. It dies with its parent, and workers die with their template, whatever kills that.

Elsewhere than on Linux nothing is forked: each worker makes a task of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import NoReturn, Protocol

from pipeline.worker_start import begin_as_worker, worker_context
from pipeline.workers.task import ONE_THREAD, Failed, Task, WorkerError, failure

log = logging.getLogger(__name__)

MAX_STARTS = 10
START_AGAIN_S = 0.2
# from the end of a process's pipe to the end of the process
MAX_DYING_S = 10.0

_PR_SET_PDEATHSIG = 1  # of prctl.h

# the life of a worker: what it does with its end of the pipe and its task
Life = Callable[[Connection, Task], None]


class WorkerProcess(Protocol):
    pid: int

    def kill(self) -> None:
        """Does not wait for its end."""

    def wait(self) -> int | None:
        """Until it has ended, or is killed for taking too long: its exit code, or minus the number of the signal. None
        if its template was killed, and it with that."""


@dataclass(frozen=True, slots=True)
class _Fork:
    """To the template: a worker is wanted, and its end of a pipe follows. Answered by a pid, or by an OSError."""


@dataclass(frozen=True, slots=True)
class _Kill:
    """To the template. Not answered."""

    pid: int


@dataclass(frozen=True, slots=True)
class _Wait:
    """To the template: a worker is dying. Answered by its exit code."""

    pid: int


@dataclass(frozen=True, slots=True)
class _End:
    """To the template: no more. Answered by the end of the stream."""


class Template:
    """What makes workers of one task."""

    def __init__(self, make_task: Callable[[], Task], live: Life) -> None:
        """`make_task` and `live` must be picklable; the task is made when the first worker is wanted."""
        self._make_task = make_task
        self._live = live
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_ready = False
        self._deaths = 0
        self._spawned: list[_Spawned] = []

    def start_worker(self) -> tuple[WorkerProcess, Connection]:
        """A new worker, and our end of its pipe. The first waits until the task is made.

        Raises WorkerError if there is none to be had, and what making the task raised.
        """
        if sys.platform != "linux":
            process, connection = _start(_work_alone, self._make_task, self._live)
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
        if self._process is None or self._connection is None:
            self._process, self._connection = _start(_serve, self._make_task, self._live)
        assert self._process.pid is not None
        try:
            self._connection.send(_Fork())
            send_handle(self._connection, connection.fileno(), self._process.pid)
            answer = self._connection.recv()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            return self._note_death()
        if isinstance(answer, Failed):
            raise answer.error
        self._is_ready = True
        return str(answer) if isinstance(answer, OSError) else _Forked(answer, self._connection)

    def _note_death(self) -> str:
        """Of the template: the next worker is forked off another. Raises WorkerError if it has died too often."""
        assert self._process is not None
        self._process.join(timeout=MAX_DYING_S)
        how = f"the process that workers are forked off ended with code {self._process.exitcode}"
        self.close()
        self._deaths += 1
        if self._deaths >= MAX_STARTS:
            raise _no_worker(f"{how}, {self._deaths} times")
        log.warning("%s; another is started", how)
        return how

    def close(self) -> None:
        """Kill what workers there are, and wait for their end; for those of a killed template the kernel does it."""
        if self._process is not None and self._connection is not None:
            if self._is_ready:
                with contextlib.suppress(OSError, EOFError):
                    self._connection.send(_End())
                    while self._connection.poll(MAX_DYING_S):
                        self._connection.recv()
            self._process.kill()
            self._connection.close()
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

    def __init__(self, pid: int, template_connection: Connection) -> None:
        self.pid = pid
        self._template_connection = template_connection
        self._has_ended = False
        self._code: int | None = None

    def kill(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(OSError):  # of a dead template the workers die
                self._template_connection.send(_Kill(self.pid))

    def wait(self) -> int | None:
        if not self._has_ended:
            with contextlib.suppress(OSError, EOFError):
                self._template_connection.send(_Wait(self.pid))
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
    """The life of a template."""
    begin_as_worker(environment)
    os.environ.update(ONE_THREAD)
    try:
        task = make_task()
    except BaseException as error:
        connection.send(failure(error))
        signal.pause()  # until we are killed: to end now could be earlier than the question
    gc.freeze()  # as in `begin_as_worker`: workers would copy what is looked at
    living: set[int] = set()
    try:
        while True:
            match connection.recv():
                case _Fork():
                    answer = _fork(connection, recv_handle(connection), task, live)
                    if isinstance(answer, int):
                        living.add(answer)
                    connection.send(answer)
                case _Kill(pid):
                    os.kill(pid, signal.SIGKILL)
                case _Wait(pid):
                    code = _exit_code(pid)
                    living.remove(pid)
                    connection.send(code)
                case _:
                    return
    except (EOFError, OSError):
        pass  # so has the parent
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        for pid in living:
            os.waitpid(pid, 0)


def _fork(template_connection: Connection, handle: int, task: Task, live: Life) -> int | OSError:
    """A worker whose end of a pipe is `handle`: its pid, or why there is none."""
    template_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return error
    else:
        if pid == 0:
            _work_forked(template_connection, handle, task, live, template_pid=template_pid)
        return pid
    finally:
        os.close(handle)


def _work_forked(
    template_connection: Connection, handle: int, task: Task, live: Life, *, template_pid: int
) -> NoReturn:
    code = 1
    try:
        template_connection.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == template_pid:  # else it died before we asked
            live(Connection(handle), task)
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # not the template's own way out


def _exit_code(pid: int) -> int:
    """Of a dying child, as subprocess has it: minus the number of the signal that killed it."""
    deadline = time.monotonic() + MAX_DYING_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
