"""When a run is started again and when not: attempts that are plain functions, and a real event log."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint.events import EventWriter, events_file, read_events
from launch.cluster import supervisor
from launch.cluster.stopping import StopWish
from launch.cluster.supervisor import delay_before_restart_s, may_restart, supervise


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.0)


def attempts(run: Path, *told: tuple[int, range]) -> Callable[[StopWish], int]:
    """Each call is the next attempt: it tells its steps and ends with its exit code."""
    rest = list(told)

    def start(wish: StopWish) -> int:
        code, steps = rest.pop(0)
        with EventWriter(events_file(run)) as events:
            events.write("state", step=steps.start, state="running")
            for step in steps:
                events.write("metrics", step=step, **{"train/loss": 1.0})
        return code

    return start


def told(run: Path) -> list[dict[str, Any]]:
    return [dict(event.fields) for event, _ in read_events(events_file(run)) if event.kind == "attempt"]


def test_failed_attempt_is_followed_by_another_and_both_are_told(tmp_path: Path, capsys: Any) -> None:
    start = attempts(tmp_path, (247, range(1, 8)), (0, range(6, 11)))
    assert supervise(start, run_dir=tmp_path, max_restarts=5) == 0
    killed = "exit code 247: a process was ended by SIGKILL; often the machine ran out of memory"
    assert told(tmp_path) == [
        {"attempt": 1, "exit_code": 247, "reason": killed, "first_step": 1, "last_step": 7},
        {"attempt": 2, "exit_code": 0, "reason": "exit code 0", "first_step": 6, "last_step": 10},
    ]
    assert capsys.readouterr().err == f"launch train: attempt 1 ended after step 7 ({killed}); the next in 0 s\n"


def test_reason_is_the_runs_own_where_it_gave_one(tmp_path: Path) -> None:
    def start(wish: StopWish) -> int:
        with EventWriter(events_file(tmp_path)) as events:
            events.write("state", step=3, state="failed", reason="hang at step 3: rank 1")
        return 72

    assert supervise(start, run_dir=tmp_path, max_restarts=0) == 72
    assert [attempt["reason"] for attempt in told(tmp_path)] == ["exit code 72: hang at step 3: rank 1"]


def test_restarts_are_counted(tmp_path: Path, capsys: Any) -> None:
    start = attempts(tmp_path, (1, range(1, 2)), (1, range(1, 3)), (1, range(1, 4)))
    assert supervise(start, run_dir=tmp_path, max_restarts=2) == 1
    assert len(told(tmp_path)) == 3
    assert capsys.readouterr().err.endswith("launch train: given up after 2 restarts\n")


def test_three_attempts_in_a_row_without_progress_are_enough(tmp_path: Path, capsys: Any) -> None:
    # the first comes to step 7, three more no further, one of them not even there
    ends = [(1, range(1, 8)), (1, range(5, 8)), (1, range(5, 6)), (72, range(5, 8))]
    assert supervise(attempts(tmp_path, *ends), run_dir=tmp_path, max_restarts=100) == 72
    assert "given up: 3 attempts in a row came no further than step 7" in capsys.readouterr().err


def test_progress_between_failures_forgives_them(tmp_path: Path) -> None:
    stuck, further = (1, range(1, 8)), (1, range(5, 9))
    ends = [stuck, stuck, stuck, further, (1, range(5, 9)), (1, range(5, 9)), (0, range(5, 21))]
    assert supervise(attempts(tmp_path, *ends), run_dir=tmp_path, max_restarts=100) == 0


@pytest.mark.parametrize("code", [0, 2, 130, 138, 143])
def test_what_another_attempt_would_not_mend_is_not_started_again(tmp_path: Path, code: int) -> None:
    assert not may_restart(code)
    assert supervise(attempts(tmp_path, (code, range(1, 3))), run_dir=tmp_path, max_restarts=9) == code


@pytest.mark.parametrize("code", [1, 71, 72, 247])
def test_what_another_attempt_may_mend(code: int) -> None:
    assert may_restart(code)


def test_signal_during_an_attempt_ends_it_all_whatever_the_exit_code(tmp_path: Path) -> None:
    def start(wish: StopWish) -> int:
        wish.note(signal.SIGTERM)
        return 1

    assert supervise(start, run_dir=tmp_path, max_restarts=9) == 1
    assert len(told(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_between_attempts_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 600.0)
    # one that came too early would end the tests
    before = signal.signal(number, lambda number, frame: None)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))

    def start(wish: StopWish) -> int:
        timer.start()
        return 1

    try:
        assert supervise(start, run_dir=tmp_path, max_restarts=9) == 143
    finally:
        signal.signal(number, before)


def test_delay_doubles_up_to_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 10.0)
    assert [delay_before_restart_s(stalled) for stalled in (0, 1, 2, 6, 50)] == [10, 20, 40, 600, 600]
