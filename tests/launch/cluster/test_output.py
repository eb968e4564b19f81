"""Lines that DeepSpeed 0.19 and Python print, and what of them a person sees."""

from __future__ import annotations

import pytest

from launch.cluster.output import describe_exit, error_lines, is_logger_line, is_success, is_users

LOGGED = "[2026-11-25 15:31:04,406] [INFO] [launch.py:152:main] WORLD INFO DICT: {'localhost': [0, 1]}"
SUCCESS = "[2026-11-25 15:31:04,406] [INFO] [launch.py:367:main] Process 12015 exits successfully."
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise RuntimeError("rank 1 broke")
RuntimeError: rank 1 broke"""


@pytest.mark.parametrize("line", [LOGGED, SUCCESS, f"node-a: {LOGGED}", LOGGED.replace("INFO", "WARNING")])
def test_lines_of_deepspeeds_logger_are_known(line):
    assert is_logger_line(line)


@pytest.mark.parametrize("line", ["step 10/100  loss 4.2", "[2026] not a log", "", "launch train: x"])
def test_other_lines_are_not(line):
    assert not is_logger_line(line)


@pytest.mark.parametrize("line", [SUCCESS, f"node-a: {SUCCESS}", f"an unfinished line{SUCCESS}"])
def test_success_is_heard(line):
    assert is_success(line)
    assert not is_success(LOGGED)


def test_a_ranks_clear_line_is_known_also_from_another_host():
    assert is_users("launch train: batch_tokens=3 is odd; use 4")
    assert is_users("node-a: launch train: batch_tokens=3 is odd; use 4")
    assert not is_users("the launch train: no")


def test_of_a_traceback_the_exception_is_told():
    assert error_lines(TRACEBACK.splitlines()) == ["RuntimeError: rank 1 broke"]


def test_equal_errors_of_many_ranks_are_told_once():
    assert error_lines(TRACEBACK.splitlines() * 8) == ["RuntimeError: rank 1 broke"]


def test_chained_exceptions_are_both_told():
    chained = [
        *TRACEBACK.splitlines(),
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        *TRACEBACK.replace("RuntimeError", "torch.OutOfMemoryError").splitlines(),
    ]
    assert error_lines(chained) == [
        "RuntimeError: rank 1 broke",
        "torch.OutOfMemoryError: rank 1 broke",
    ]


def test_warnings_and_logs_are_not_errors():
    lines = [
        "/lib/torch/x.py:12: FutureWarning: old",
        "  warnings.warn(",
        "W1125 15:31:04 site.py:1] something",
        LOGGED,
        "ssh: connect to host node-a port 22: Connection refused",
    ]
    assert error_lines(lines) == ["ssh: connect to host node-a port 22: Connection refused"]


def test_a_repeated_line_counts_where_it_stands_last():
    assert error_lines(["first", "second", "first"]) == ["second", "first"]


def test_only_the_last_lines_are_told():
    assert error_lines(f"line {number}" for number in range(100)) == [f"line {number}" for number in range(80, 100)]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "exit code 1"),
        (137, "exit code 137: a process was ended by SIGKILL; often the machine ran out of memory"),
        (247, "exit code 247: a process was ended by SIGKILL; often the machine ran out of memory"),
        (139, "exit code 139: a process was ended by SIGSEGV"),
        (245, "exit code 245: a process was ended by SIGSEGV"),
        (200, "exit code 200"),
    ],
)
def test_exit_codes_in_words(code, text):
    assert describe_exit(code) == text
