"""Worker processes of this machine. What an item is, they do not know.

Workers are not forked off the parent, which has threads (Arrow, the tokenizer's training), but off a template
(`template.py`). A worker dies with its parent, whatever kills that. One that dies itself is replaced, and its item done
again after the others, when fewer workers share the memory.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from pipeline.workers.memory import anonymous_memory_bytes
from pipeline.workers.quarantine import Quarantine
from pipeline.workers.task import Failed, Finished, Lost, Started, Task, failure
from pipeline.workers.template import Template

MEMORY_POLL_S = 0.2


def run_in_processes(
    make_task: Callable[[], Task],
    items: Sequence[Any],
    *,
    workers: int,
    max_worker_memory_bytes: int | None = None,
    poll_s: float = 0.5,
    template: Template | None = None,
) -> Iterator[Any]:
    """Do every item; yields messages (`task.py`), results in the order of completion.

    `make_task` must be picklable and is called once, in another process, that of `template` if `begin_ahead` gave one;
    every worker has a copy of the task that it made. An exception of it, or of a task, is raised here after all workers
    are stopped. A worker with more than `max_worker_memory_bytes` is killed. Raises QuarantineError at the end if some
    items killed three workers each, and WorkerError at once if no item can be done.
    """
    waiting = deque(items)
    quarantine = Quarantine()
    is_lent, template = template is not None, template or Template(_work)
    template.make(make_task)
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    poll_s = poll_s if max_worker_memory_bytes is None else min(poll_s, MEMORY_POLL_S)
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker(template)
                busy[worker.connection] = worker
                yield worker.begin(waiting.popleft())
            ready = wait(list(busy), timeout=poll_s)
            if not ready:
                yield None
            for connection in ready:
                assert isinstance(connection, Connection)
                worker = busy[connection]
                message = worker.receive()
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, Finished | Lost):
                    del busy[connection]
                    if worker.can_go_on_after(message):
                        idle.append(worker)
                    else:
                        worker.end()
                if isinstance(message, Finished):
                    quarantine.note_finish()
                elif isinstance(message, Lost) and worker.may_leave_it_to_another(message, quarantine):
                    waiting.append(message.item)
                yield message
            if max_worker_memory_bytes is not None:
                _kill_the_greedy(busy.values(), max_worker_memory_bytes=max_worker_memory_bytes)
        quarantine.check_empty()
    finally:
        if is_lent and not busy:
            template.end()  # whoever lent it waits for it, and may do something else before
        else:
            template.close()  # before the pipes: a worker that finds its own broken prints a traceback
        for worker in (*idle, *busy.values()):
            worker.connection.close()


@contextlib.contextmanager
def begin_ahead(call: Callable[[], object]) -> Iterator[Template]:
    """The process that will make the task begins already, with this call, which makes that faster (`Template.prepare`).
    For a `run_in_processes` of this block."""
    template = Template(_work)
    try:
        template.prepare(call)
        yield template
    finally:
        template.close()


class _Worker:
    """A process, our end of its pipe, and the item that it does."""

    def __init__(self, template: Template) -> None:
        self.process, self.connection = template.start_worker()
        self.item: Any = None
        self.killed_for: str | None = None
        self.fell_with_template = False  # no fault of its item's

    @property
    def name(self) -> str:
        return f"pid {self.process.pid}"

    def begin(self, item: Any) -> Started:
        self.item = item
        # if it is dead, the next receive says of what
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(item)
        return Started(item, worker=self.name)

    def receive(self) -> Any:
        """Its next message, or Lost if there will be none."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # the end of the stream, at the beginning or in the middle of a message
            code = self.process.wait()
            self.fell_with_template = code is None and self.killed_for is None
            return Lost(self.item, how=self.killed_for or _how_it_ended(code))

    def can_go_on_after(self, message: Finished[Any] | Lost) -> bool:
        # one that finished while it was killed is too late for that item, and none of the next one's business
        return isinstance(message, Finished) and self.killed_for is None

    def may_leave_it_to_another(self, lost: Lost, quarantine: Quarantine) -> bool:
        return self.fell_with_template or quarantine.may_try_again(lost.item, worker=self.name, how=lost.how)

    def end(self) -> None:
        # before the pipe closes: a worker that finds it broken prints a traceback
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "was killed with the process that it was forked off"
    if code >= 0:
        return f"ended with code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _kill_the_greedy(workers: Iterable[_Worker], *, max_worker_memory_bytes: int) -> None:
    for worker in workers:
        used = anonymous_memory_bytes(worker.process.pid)
        if used > max_worker_memory_bytes:
            worker.killed_for = over_memory(used, max_worker_memory_bytes=max_worker_memory_bytes)
            worker.process.kill()


def over_memory(used_bytes: int, *, max_worker_memory_bytes: int) -> str:
    """How a worker ended that was killed for its memory."""
    limit = f"max_worker_memory_bytes={max_worker_memory_bytes:,}"
    return f"was ended for holding {used_bytes:,} bytes of memory, above {limit}"


def _work(connection: Connection, task: Task) -> None:
    """The life of a worker process."""
    try:
        while True:
            try:
                item = connection.recv()
            except EOFError:
                return  # the parent needs no more
            connection.send(Finished(task(item, connection.send)))
    except BaseException as error:
        connection.send(failure(error))
