"""What every executor does alike, and what only processes of this machine do. Ray's own is in workers/."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.executors import (
    ExecutorKind,
    ExecutorSettings,
    Finished,
    Lost,
    QuarantineError,
    Started,
    WorkerError,
    execute,
    run_in_processes,
)
from pipeline.run import run
from pipeline.worker_start import warm_up

Tell = Callable[[Any], None]
Execute = Callable[..., Iterator[Any]]


def square(number: int, tell: Tell) -> int:
    tell(f"doing {number}")
    return number * number


def pid_and_environment(number: int, tell: Tell) -> tuple[int, str]:
    time.sleep(0.3)
    return os.getpid(), os.environ["TOKENIZERS_PARALLELISM"]


def fail_at_two(number: int, tell: Tell) -> int:
    if number == 2:
        raise PipelineError("two is bad")
    return number


def meet_end_of_file(number: int, tell: Tell) -> None:
    raise EOFError("file ends")


def sleep_long(number: int, tell: Tell) -> None:
    tell(os.getpid())
    time.sleep(60)


def die_once_at_two(number: int, tell: Tell, *, folder: Path) -> int:
    died = folder / "died"
    if number == 2 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die_at_two(number: int, tell: Tell) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_end(number: int, tell: Tell) -> None:
    os._exit(7)


def grow_at_two(number: int, tell: Tell) -> int:
    if number == 2:
        hoard = b"x" * (400 << 20)  # touched, not only reserved
        time.sleep(60)
        return len(hoard)
    return number


def constant(task: Any) -> Any:
    return task


def make(task: Any) -> Callable[[], Any]:
    return functools.partial(constant, task)


def results(messages: Iterator[Any]) -> list[Any]:
    return sorted(message.result for message in messages if isinstance(message, Finished))


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """A Ray of this machine for all tests of this file: starting one takes seconds."""
    ray = pytest.importorskip("ray")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="ray")  # not pytest's: the names of sockets may be 107 characters long
    ray.init(
        address="local",
        _temp_dir=folder,
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
    monkeypatch.undo()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["serial", "local", "ray"])
def kind(request: pytest.FixtureRequest) -> ExecutorKind:
    if request.param == "ray":
        request.getfixturevalue("small_ray")
    kind: ExecutorKind = request.param
    return kind


@pytest.fixture(params=["local", "ray"])
def parallel(request: pytest.FixtureRequest) -> Callable[..., ExecutorSettings]:
    """Settings of an executor whose workers can die."""
    if request.param == "ray":
        request.getfixturevalue("small_ray")
    return functools.partial(ExecutorSettings, request.param)


def test_every_item_is_done_and_news_reach_the_parent(kind: ExecutorKind) -> None:
    messages = list(execute(ExecutorSettings(kind, None if kind == "serial" else 2), make(square), [1, 2, 3]))
    assert results(iter(messages)) == [1, 4, 9]
    assert sorted(message for message in messages if isinstance(message, str)) == ["doing 1", "doing 2", "doing 3"]
    started = [message for message in messages if isinstance(message, Started)]
    assert sorted(message.item for message in started) == [1, 2, 3]
    assert all(message.worker.startswith("pid ") for message in started)


def test_no_items_need_no_workers(kind: ExecutorKind) -> None:
    assert list(execute(ExecutorSettings(kind), make(square), [])) == []


def test_the_environment_of_the_caller_stays_as_it_is(
    corpus: Path, make_config: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before = dict(os.environ)
    run(make_config(executor="serial"))
    assert dict(os.environ) == before


def test_files_that_ray_workers_have_read_are_read_again_by_the_next_run(
    small_ray: None, corpus: Path, tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    """The caller stays connected, so that the same processes do both runs, by a config that is the same."""
    words = tmp_path / "words.txt"
    config = make_config(executor="ray", filters=[{"type": "banned_words", "path": str(words)}])
    dropped: list[bool] = []
    for listed in ("unheard-of", "shard"):
        words.write_text(listed)
        dropped.append("banned_words" in run(config).manifest.dropped)
        shutil.rmtree(config.output_dir)
    assert dropped == [False, True]


def test_an_error_of_a_task_is_raised_here(kind: ExecutorKind) -> None:
    with pytest.raises(PipelineError, match="two is bad") as caught:
        list(execute(ExecutorSettings(kind, 1), make(fail_at_two), [1, 2, 3]))
    assert str(caught.value) == "two is bad"
    if kind != "serial":
        assert "in fail_at_two" in caught.value.__notes__[0]


def test_an_end_of_file_in_a_task_is_an_error_like_any_other(kind: ExecutorKind) -> None:
    with pytest.raises(EOFError, match="file ends"):
        list(execute(ExecutorSettings(kind, 1), make(meet_end_of_file), [1]))


def test_a_killed_worker_is_replaced_and_its_item_done_again(
    parallel: Callable[..., ExecutorSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = functools.partial(die_once_at_two, folder=tmp_path)
    messages = list(execute(parallel(workers=1), make(task), [1, 2, 3]))
    assert results(iter(messages)) == [1, 2, 3]
    assert [message.item for message in messages if isinstance(message, Lost)] == [2]
    # last, when fewer workers share the memory
    assert [message.item for message in messages if isinstance(message, Started)] == [1, 2, 3, 2]
    (line,) = caplog.messages
    assert line.endswith("while doing 2; it will be tried again (2 of 3)")


def test_an_item_that_kills_three_workers_is_named_when_the_others_are_done(
    parallel: Callable[..., ExecutorSettings],
) -> None:
    done: list[int] = []

    def do_all() -> None:
        for message in execute(parallel(workers=2), make(always_die_at_two), [1, 2, 3, 4]):
            if isinstance(message, Finished):
                done.append(message.result)

    with pytest.raises(QuarantineError) as caught:
        do_all()
    assert sorted(done) == [1, 3, 4]
    line = str(caught.value)
    assert line.startswith("units that killed 3 workers each and are not done: 2 (was ")
    assert "run the same command to try again, with fewer workers (workers=1) or a higher max_worker" in line
    assert "\n" not in line


def test_a_worker_above_its_memory_is_ended_and_the_limit_named(parallel: Callable[..., ExecutorSettings]) -> None:
    settings = parallel(workers=1, max_worker_memory_bytes=300 << 20)
    with pytest.raises(
        QuarantineError, match=r"2 \(was ended for holding [\d,]+ bytes of memory, above max_wor.*=314,"
    ):
        list(execute(settings, make(grow_at_two), [1, 2]))


def test_workers_that_die_at_once_end_the_run() -> None:
    expected = (
        r"^workers die whatever they do: a worker \(pid \d+\) ended with code 7 while doing \d+, as did 8 before; "
        r"nothing that was done is lost: run the same command to go on, with fewer workers"
    )
    with pytest.raises(WorkerError, match=expected):
        list(run_in_processes(make(always_end), range(100), workers=2))


def test_workers_are_other_processes_with_one_thread_for_the_tokenizer() -> None:
    done = results(run_in_processes(make(pid_and_environment), range(4), workers=2))
    assert len({pid for pid, _ in done} - {os.getpid()}) == 2
    assert {setting for _, setting in done} == {"false"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked off a server")
def test_workers_begin_even_if_the_server_that_they_are_forked_off_is_killed() -> None:
    warm_up()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert results(run_in_processes(make(square), [1, 2, 3], workers=2)) == [1, 4, 9]


def test_a_worker_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(process: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", fail)
    monkeypatch.setattr("pipeline.workers.template.START_AGAIN_S", 0)
    expected = (
        r"^no worker process can be started \(\[Errno 12\] Cannot allocate memory\); free some memory and run the"
    )
    with pytest.raises(WorkerError, match=expected):
        list(run_in_processes(make(square), [1], workers=1))


def test_how_a_local_worker_died_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QuarantineError, match=r"not done: 2 \(was killed by SIGKILL\)\. All"):
        list(run_in_processes(make(always_die_at_two), [2], workers=1))
    assert [line.rpartition("; ")[2] for line in caplog.messages] == [
        "it will be tried again (2 of 3)",
        "it will be tried again (3 of 3)",
        "it is set apart, having killed 3 workers",
    ]


def test_how_a_dead_ray_worker_was_lost_is_one_line(small_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QuarantineError, match=r"not done: 2 \(was lost: The worker died unexpectedly[^\n]+\)\. All"):
        list(execute(ExecutorSettings("ray", 1), make(always_die_at_two), [2]))
    assert all(line.startswith("a worker (pid ") for line in caplog.messages)


def is_alive(pid: int) -> bool:
    """A process that runs: not gone, not a zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_leaving_early_ends_the_workers() -> None:
    messages = run_in_processes(make(sleep_long), [1, 2], workers=2)
    pids = [next(message for message in messages if isinstance(message, int)) for _ in range(2)]
    assert all(map(is_alive, pids))
    started = time.monotonic()
    messages.close()  # type: ignore[attr-defined]
    assert not any(map(is_alive, pids))
    assert time.monotonic() - started < 20  # their items take 60 s


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    # a module of its own: spawn imports the task's module by name
    (tmp_path / "sleeper.py").write_text(
        "import functools, os, time\n"
        "from pipeline.executors import run_in_processes\n"
        "def sleep(item, tell):\n    tell(os.getpid())\n    time.sleep(60)\n"
        "def make():\n    return sleep\n"
        "def main():\n"
        "    for message in run_in_processes(make, [1, 2], workers=2):\n"
        "        if isinstance(message, int):\n            print(message, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import sleeper; sleeper.main()"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).resolve().parents[2]}"},
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(is_alive, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))
