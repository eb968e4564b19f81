"""What the processes of `template.py` do: the template, the workers that are forked off it, and those that are not.

The parent tells a template one message after the other, on one connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NoReturn

from pipeline.worker_start import begin_as_worker
from pipeline.workers.task import ONE_THREAD, Failed, Task, failure

# from the end of a process's pipe to the end of the process
MAX_DYING_S = 10.0

_PR_SET_PDEATHSIG = 1  # of prctl.h

# the life of a worker: what it does with its end of the pipe and its task
Life = Callable[[Connection, Task], None]


@dataclass(frozen=True, slots=True)
class Prepare:
    """To be called now, so that making the task takes less time. Not answered, whatever it raises."""

    call: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Make:
    """How to make the task, pickled. Not answered: what is raised answers the first `Fork`."""

    pickled: bytes


@dataclass(frozen=True, slots=True)
class Fork:
    """A worker is wanted, and its end of a pipe follows. Answered by a pid, or by an OSError."""


@dataclass(frozen=True, slots=True)
class Kill:
    """To be killed. Not answered."""

    pid: int


@dataclass(frozen=True, slots=True)
class Wait:
    """A worker is dying. Answered by its exit code."""

    pid: int


@dataclass(frozen=True, slots=True)
class End:
    """No more. Answered by the end of the stream."""


def work_alone(connection: Connection, pickled: bytes, live: Life, environment: Mapping[str, str]) -> None:
    """The life of a worker that is forked off nothing; `pickled` is as in `Make`."""
    _begin(environment)
    task = _made(pickled)
    if isinstance(task, Failed):
        connection.send(task)
    else:
        live(connection, task)


def serve(connection: Connection, live: Life, environment: Mapping[str, str]) -> None:
    """The life of a template."""
    _begin(environment)
    gc.disable()  # until a worker is forked off: what is made here stays
    living: set[int] = set()
    try:
        with contextlib.suppress(EOFError, OSError):  # the parent has ended, and so do we
            _obey(connection, live, living)
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        for pid in living:
            os.waitpid(pid, 0)


def _begin(environment: Mapping[str, str]) -> None:
    begin_as_worker(environment)
    os.environ.update(ONE_THREAD)


def _made(pickled: bytes) -> Task | Failed:
    try:
        make_task: Callable[[], Task] = pickle.loads(pickled)  # which may have to read files
        return make_task()
    except BaseException as error:
        return failure(error)


def _obey(connection: Connection, live: Life, living: set[int]) -> None:
    """Until told to end. `living` are the workers that nobody has waited for."""
    task: Task | Failed | None = None
    while True:
        match connection.recv():
            case Prepare(call):
                with contextlib.suppress(BaseException):  # making the task will meet it again
                    call()
            case Make(pickled):
                task = _made(pickled)
                gc.freeze()  # as in `begin_as_worker`: workers would copy what is looked at
            case Fork():
                assert task is not None
                handle = recv_handle(connection)
                if isinstance(task, Failed):
                    os.close(handle)
                    connection.send(task)
                    continue
                answer = _fork(connection, handle, task, live)
                if isinstance(answer, int):
                    living.add(answer)
                connection.send(answer)
            case Kill(pid):
                os.kill(pid, signal.SIGKILL)
            case Wait(pid):
                code = _exit_code(pid)
                living.remove(pid)
                connection.send(code)
            case _:
                return


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
        gc.enable()
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
