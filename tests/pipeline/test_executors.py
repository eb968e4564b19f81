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
from pipeline.executors import Finished, WorkerError, run_in_processes


def square(number: int, tell: Callable[[Any], None]) -> int:
    tell(f"doing {number}")
    return number * number


def make_square() -> Callable[[int, Callable[[Any], None]], int]:
    return square


def pid_and_environment(number: int, tell: Callable[[Any], None]) -> tuple[int, str]:
    time.sleep(0.3)
    return os.getpid(), os.environ["TOKENIZERS_PARALLELISM"]


def fail_at_two(number: int, tell: Callable[[Any], None]) -> int:
    if number == 2:
        raise PipelineError("two is bad")
    return number


def die_at_two(number: int, tell: Callable[[Any], None]) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def meet_end_of_file(number: int, tell: Callable[[Any], None]) -> None:
    raise EOFError("file ends")


def sleep_long(number: int, tell: Callable[[Any], None]) -> None:
    tell(os.getpid())
    time.sleep(60)


def constant(task: Any) -> Any:
    return task


def make(task: Any) -> Callable[[], Any]:
    return functools.partial(constant, task)


def is_alive(pid: int) -> bool:
    """A process that runs: not gone, not a zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_item_is_done_and_news_reach_the_parent() -> None:
    messages = list(run_in_processes(make(square), [1, 2, 3], workers=2))
    assert sorted(message.result for message in messages if isinstance(message, Finished)) == [1, 4, 9]
    assert sorted(message for message in messages if isinstance(message, str)) == ["doing 1", "doing 2", "doing 3"]


def test_workers_are_other_processes_with_one_thread_for_the_tokenizer() -> None:
    results = [
        message.result
        for message in run_in_processes(make(pid_and_environment), range(4), workers=2)
        if isinstance(message, Finished)
    ]
    assert len({pid for pid, _ in results} - {os.getpid()}) == 2
    assert {setting for _, setting in results} == {"false"}


def test_no_items_need_no_workers() -> None:
    assert list(run_in_processes(make(square), [], workers=2)) == []


def test_an_error_of_a_task_is_raised_here_and_says_where_it_came_from() -> None:
    with pytest.raises(PipelineError, match="two is bad") as caught:
        list(run_in_processes(make(fail_at_two), [1, 2, 3], workers=1))
    assert str(caught.value) == "two is bad"
    assert "in fail_at_two" in caught.value.__notes__[0]


def test_an_end_of_file_in_a_task_is_an_error_like_any_other() -> None:
    with pytest.raises(EOFError, match="file ends"):
        list(run_in_processes(make(meet_end_of_file), [1], workers=1))


def test_a_killed_worker_is_one_line_that_says_what_to_do() -> None:
    expected = (
        r"^a worker \(pid \d+\) was killed by SIGKILL while doing unit 2; nothing is lost: "
        r"run the same command to go on, with fewer workers \(workers=1\) if memory was short$"
    )
    with pytest.raises(WorkerError, match=expected):
        list(run_in_processes(make(die_at_two), [1, 2, 3], workers=1))


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
        "        if message is not None:\n            print(message, flush=True)\n"
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
