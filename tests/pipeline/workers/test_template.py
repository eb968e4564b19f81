"""The process that makes a task, and off which workers are forked. What workers do is in test_executors.py."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import PipelineError
from pipeline.workers import template as template_module
from pipeline.workers.local import run_in_processes
from pipeline.workers.task import Finished, Lost, Task, WorkerError
from pipeline.workers.template import Template

Tell = Callable[[Any], None]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")


def pid_and_parent(item: int, tell: Tell) -> tuple[int, int]:
    time.sleep(0.3)
    return os.getpid(), os.getppid()


def counted(folder: Path, task: Task) -> Task:
    (folder / f"made by {os.getpid()}").touch()
    return task


def kill_the_template_once(item: int, tell: Tell, *, folder: Path) -> int:
    if item == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # it does not come to that
    return item


def kill_myself_once(item: int, tell: Tell, *, folder: Path) -> int:
    if item == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def missing() -> Task:
    raise FileNotFoundError(2, "No such file", "list.txt")


def unloadable() -> Task:
    raise PipelineError("the list is broken")


def never_loaded() -> Task:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def results(messages: list[Any]) -> list[Any]:
    return sorted(message.result for message in messages if isinstance(message, Finished))


@on_linux
def test_a_task_is_made_once_and_all_workers_have_it(tmp_path: Path) -> None:
    make_task = functools.partial(counted, tmp_path, pid_and_parent)
    done = results(list(run_in_processes(make_task, range(4), workers=2)))
    assert len({pid for pid, _ in done}) == 2
    ((template,), (made,)) = ({parent for _, parent in done}, tmp_path.iterdir())
    assert made.name == f"made by {template}"
    assert template != os.getpid()


@on_linux
def test_a_killed_template_takes_its_workers_with_it_and_their_items_are_done_by_those_of_another(
    tmp_path: Path,
) -> None:
    make_task = functools.partial(counted, tmp_path, functools.partial(kill_the_template_once, folder=tmp_path))
    messages = list(run_in_processes(make_task, [1, 2, 3, 4], workers=2))
    assert results(messages) == [1, 2, 3, 4]
    assert 1 in [message.item for message in messages if isinstance(message, Lost)]
    assert {message.how for message in messages if isinstance(message, Lost)} == {"was killed by SIGKILL"}
    assert len(list(tmp_path.glob("made by *"))) == 2


@pytest.mark.parametrize(("make_task", "error"), [(unloadable, PipelineError), (missing, FileNotFoundError)])
def test_what_making_a_task_raises_is_raised_here(make_task: Callable[[], Task], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        list(run_in_processes(make_task, [1, 2], workers=2))
    assert f"in {make_task.__name__}" in caught.value.__notes__[0]


@on_linux
def test_a_template_that_is_killed_whenever_it_loads_is_one_line() -> None:
    expected = (
        r"^no worker process can be started \(what they are forked off is killed each time\); free some memory and"
    )
    with pytest.raises(WorkerError, match=expected):
        list(run_in_processes(never_loaded, [1], workers=1))


@on_linux
def test_a_fork_that_fails_is_tried_again_and_ends_no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "START_AGAIN_S", 0)
    answers = iter([OSError(11, "Resource temporarily unavailable")] * 2)
    ask = Template._ask_for_worker

    def fail_twice(template: Template, connection: Any) -> Any:
        if template._process is not None and (error := next(answers, None)) is not None:
            return error, template._connection
        return ask(template, connection)

    monkeypatch.setattr(Template, "_ask_for_worker", fail_twice)
    make_task = functools.partial(_constant, pid_and_parent)
    done = results(list(run_in_processes(make_task, range(4), workers=2)))
    assert len({pid for pid, _ in done}) == 2
    assert len({parent for _, parent in done}) == 1


@on_linux
def test_a_fork_that_always_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "START_AGAIN_S", 0)
    error = OSError(12, "Cannot allocate memory")
    monkeypatch.setattr(Template, "_ask_for_worker", lambda template, connection: (error, None))
    with pytest.raises(WorkerError, match=r"can be started \(\[Errno 12\] Cannot allocate memory\); free some memory"):
        list(run_in_processes(functools.partial(_constant, pid_and_parent), [1], workers=1))


@on_linux
def test_a_template_says_why_it_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", fail)
    reading, writing = os.pipe()
    answer = template_module._fork(None, writing, pid_and_parent, lambda connection, task: None)  # type: ignore[arg-type]
    assert isinstance(answer, OSError)
    assert os.read(reading, 1) == b""  # the worker's end is closed
    os.close(reading)


@on_linux
def test_no_process_is_left_even_as_a_zombie() -> None:
    messages = run_in_processes(functools.partial(_constant, pid_and_parent), range(100), workers=2)
    pid, parent = next(message.result for message in messages if isinstance(message, Finished))
    messages.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()
    deadline = time.monotonic() + 5  # the server buries it
    while Path(f"/proc/{parent}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{parent}").exists()


def test_elsewhere_each_worker_makes_a_task_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    make_task = functools.partial(counted, tmp_path, functools.partial(kill_myself_once, folder=tmp_path))
    messages = list(run_in_processes(make_task, [1, 2], workers=1))
    assert results(messages) == [1, 2]
    assert [message.how for message in messages if isinstance(message, Lost)] == ["was killed by SIGKILL"]
    assert len(list(tmp_path.glob("made by *"))) == 2
    with pytest.raises(PipelineError, match="the list is broken"):
        list(run_in_processes(unloadable, [1], workers=1))


def _constant(task: Task) -> Task:
    return task
