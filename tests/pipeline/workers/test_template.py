"""The process that makes a task, and off which workers are forked. What workers do is in test_executors.py."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import PipelineError
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.special_tokens import EOS_TOKEN
from pipeline.tokenizer.train import train_tokenizer
from pipeline.workers import template as template_module
from pipeline.workers import template_process
from pipeline.workers.local import begin_ahead, run_in_processes
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
    if not (folder / "killed").exists():
        if item == 1:
            time.sleep(0.5)  # all have begun
            (folder / "killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # it does not come to that
    return item


def kill_myself_once(item: int, tell: Tell, *, folder: Path) -> int:
    if item == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def threads_of_template(item: int, tell: Tell) -> int:
    return len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))


def _with_engines(content: bytes) -> Task:
    encoder = Encoder(content, eos_token=EOS_TOKEN)
    encoder.use("splintr")
    return threads_of_template


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
def test_a_killed_template_takes_its_workers_with_it_and_no_item_is_blamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More workers than may die in a row by their items."""
    make_task = functools.partial(counted, tmp_path, functools.partial(kill_the_template_once, folder=tmp_path))
    messages = list(run_in_processes(make_task, range(12), workers=12))
    assert results(messages) == list(range(12))
    assert 1 in [message.item for message in messages if isinstance(message, Lost)]
    how = "was killed with the process that it was forked off"
    assert {message.how for message in messages if isinstance(message, Lost)} == {how}
    assert len(list(tmp_path.glob("made by *"))) == 2
    assert caplog.messages == ["the process that workers are forked off ended with code -9; another is started"]


@pytest.mark.parametrize(("make_task", "error"), [(unloadable, PipelineError), (missing, FileNotFoundError)])
def test_what_making_a_task_raises_is_raised_here(make_task: Callable[[], Task], error: type[Exception]) -> None:
    started = time.monotonic()
    with pytest.raises(error) as caught:
        list(run_in_processes(make_task, [1, 2], workers=2))
    assert f"in {make_task.__name__}" in caught.value.__notes__[0]
    assert time.monotonic() - started < template_module.MAX_DYING_S  # nobody waits for what has nothing to end


@on_linux
def test_a_template_that_is_killed_whenever_it_loads_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "START_AGAIN_S", 0)
    expected = (
        r"^no worker process can be started \(the process that workers are forked off ended with code -9, 10 times\); "
        "free some memory and run the same command to go on$"
    )
    with pytest.raises(WorkerError, match=expected):
        list(run_in_processes(never_loaded, [1], workers=1))


@on_linux
def test_a_script_that_runs_a_pipeline_on_import_is_told_so(tmp_path: Path) -> None:
    """Multiprocessing imports the script in each process that it starts."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pipeline.workers.local import run_in_processes\n"
        "from pipeline.workers.task import WorkerError\n"
        "try:\n"
        "    print(list(run_in_processes(dict, [1], workers=1)))\n"
        "except WorkerError as error:\n"
        "    raise SystemExit(str(error))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1].startswith("the process that workers are forked off ended with code 1 as it ")
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


@on_linux
def test_a_fork_that_fails_is_tried_again_and_ends_no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "START_AGAIN_S", 0)
    failures = iter(["[Errno 11] Resource temporarily unavailable"] * 2)
    fork = Template._fork

    def fail_twice_after_the_first(template: Template, connection: Any) -> Any:
        return (template._is_ready and next(failures, None)) or fork(template, connection)

    monkeypatch.setattr(Template, "_fork", fail_twice_after_the_first)
    done = results(list(run_in_processes(functools.partial(_constant, pid_and_parent), range(4), workers=2)))
    assert len({pid for pid, _ in done}) == 2
    assert len({parent for _, parent in done}) == 1
    assert next(failures, None) is None


@on_linux
def test_a_fork_that_always_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "START_AGAIN_S", 0)
    monkeypatch.setattr(Template, "_fork", lambda template, connection: "[Errno 12] Cannot allocate memory")
    with pytest.raises(WorkerError, match=r"can be started \(\[Errno 12\] Cannot allocate memory\); free some memory"):
        list(run_in_processes(functools.partial(_constant, pid_and_parent), [1], workers=1))


@on_linux
def test_a_template_says_why_it_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", fail)
    reading, writing = os.pipe()
    answer = template_process._fork(None, writing, pid_and_parent, lambda connection, task: None)  # type: ignore[arg-type]
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


def note_and_fail(folder: Path) -> None:
    (folder / f"prepared by {os.getpid()}").touch()
    raise RuntimeError


@on_linux
def test_what_is_called_ahead_is_called_where_the_task_is_made_and_may_fail(tmp_path: Path) -> None:
    make_task = functools.partial(counted, tmp_path, pid_and_parent)
    with begin_ahead(functools.partial(note_and_fail, tmp_path)) as template:
        for times in (1, 2):  # the second time nothing is prepared, and another process makes it
            done = results(list(run_in_processes(make_task, range(4), workers=2, template=template)))
            assert len({pid for pid, _ in done}) == 2
            assert len(list(tmp_path.glob("made by *"))) == times
    (prepared,) = tmp_path.glob("prepared by *")
    assert (tmp_path / prepared.name.replace("prepared", "made")).exists()


@on_linux
def test_of_a_template_that_dies_before_there_is_a_task_the_run_knows_nothing(tmp_path: Path) -> None:
    make_task = functools.partial(counted, tmp_path, pid_and_parent)
    with begin_ahead(functools.partial(os.kill, 0, 0)) as template:
        assert template._process is not None
        template._process.kill()
        assert len(results(list(run_in_processes(make_task, [1, 2], workers=2, template=template)))) == 2


@on_linux
def test_a_template_ahead_of_a_run_that_never_comes_is_ended() -> None:
    with begin_ahead(functools.partial(time.sleep, 600)) as template:
        assert template._process is not None
        process = template._process
        assert process.is_alive()
    assert process.exitcode == -signal.SIGKILL


def test_elsewhere_nothing_begins_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with begin_ahead(functools.partial(time.sleep, 600)) as template:
        assert template._process is None
        assert results(list(run_in_processes(_make_pid_and_parent, [1], workers=1, template=template)))


def _make_pid_and_parent() -> Task:
    return pid_and_parent


class FromAFile:
    """What cannot be unpickled where its file is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.read_bytes, (self.path,)

    def __call__(self) -> Task:
        raise AssertionError


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_what_reading_a_task_raises_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        list(run_in_processes(FromAFile(tmp_path / "tokenizer.json"), [1, 2], workers=2))


def panic() -> None:
    raise SystemExit(1)


@on_linux
def test_a_hint_that_panics_ends_no_run() -> None:
    with begin_ahead(panic) as template:
        make_task = functools.partial(_constant, pid_and_parent)
        assert len(results(list(run_in_processes(make_task, [1], workers=1, template=template)))) == 1


def tell_without_end(item: int, tell: Callable[[object], None]) -> None:
    while True:
        tell(item)


@on_linux
def test_workers_that_are_stopped_at_work_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with begin_ahead(functools.partial(int)) as template:
            make_task = functools.partial(_constant, tell_without_end)
            messages = run_in_processes(make_task, range(8), workers=8, template=template)
            for _ in range(40):
                next(messages)
            messages.close()  # type: ignore[attr-defined]
    assert capfd.readouterr().err == ""


@on_linux
def test_a_process_that_has_ended_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid may be another's by then."""
    with begin_ahead(functools.partial(int)) as template:
        list(run_in_processes(functools.partial(_constant, pid_and_parent), [1], workers=1, template=template))
        process = template._process
        assert process is not None
        process.join(10)
        monkeypatch.setattr(type(process), "kill", lambda process: pytest.fail("it was killed"))


@on_linux
def test_a_template_with_both_engines_has_one_thread(tmp_path: Path) -> None:
    """A lock that another thread holds while a worker is forked off would never be free in that."""
    content = train_tokenizer(["some words of some text " * 20], vocab_size=280)
    make_task = functools.partial(_with_engines, content)
    assert results(list(run_in_processes(make_task, [1], workers=1))) == [1]


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
