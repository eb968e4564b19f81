"""More failures under supervision than `make test` has time for: each really caused, with real ranks."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import list_steps

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def undisturbed(start_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start_training(tmp_path_factory.mktemp("undisturbed") / "run").end()


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_is_started_again_and_the_run_ends_as_if_it_had_lived(
    start_training: Any, undisturbed: Any, tmp_path: Path, rank: int
) -> None:
    started = start_training(tmp_path / "run", "--max-restarts=1")
    started.wait_for_step(13)
    os.kill(started.rank_pid(rank), signal.SIGKILL)
    ended = started.end()
    assert ended.code == 0, ended.err
    assert ended.metric("train/loss") == undisturbed.metric("train/loss")
    attempts = [event.fields for event in ended.events if event.kind == "attempt"]
    assert [attempt["exit_code"] == 0 for attempt in attempts] == [False, True]
    assert "SIGKILL" in attempts[0]["reason"] or "another rank is gone" in attempts[0]["reason"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_signal_to_the_supervisor_saves_and_ends_it_all(
    start_training: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    started = start_training(tmp_path / "run", "launcher.ranks_per_node=1", "--max-restarts=9")
    started.wait_for_step(4)
    started.process.send_signal(number)
    ended = started.end()
    assert ended.code == code, ended.err
    last = max(ended.metric("train/loss"))
    assert list_steps(tmp_path / "run")[-1] == last < 30
    assert f"stopped by {number.name} after step {last}; run the same command to go on" in ended.out
    assert [event.fields["exit_code"] for event in ended.events if event.kind == "attempt"] == [code]


def test_weights_that_are_no_numbers_are_not_saved(start_training: Any, tmp_path: Path) -> None:
    # the first update is past what float32 holds, and the loss of the step that made it was a good one
    overrides = ["optimizer.learning_rate=1e39", "schedule.warmup_steps=0", "checkpoint.every_steps=1"]
    ended = start_training(tmp_path / "run", *overrides, "--max-restarts=5").end()
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert re.fullmatch(
        r"launch train: step 1: .+ is not finite \(on rank 0\), so nothing was saved; the run stopped\. Lower "
        r"optimizer\.learning_rate and run again: it goes on from the start",
        line,
    )
    assert list_steps(tmp_path / "run") == []
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()
    # nobody's to start again
    assert len([event for event in ended.events if event.kind == "attempt"]) == 1


def test_run_that_diverges_ends_after_so_many_steps_in_a_row(start_training: Any, tmp_path: Path) -> None:
    overrides = ["optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "guards.max_skipped_in_a_row=3"]
    ended = start_training(tmp_path / "run", *overrides).end()
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert ": the gradient norm is nan, so the step was not taken, number 3 in a row; the run stopped" in line
    assert "look at the data (documents chain/train-" in line
    assert list(ended.metric("train/skipped_steps").values()) == [1, 2, 3]


def test_slow_rank_is_named(start_training: Any, tmp_path: Path) -> None:
    """Rank 1 is held up for most of its time, as by a neighbour on the same cores."""
    started = start_training(tmp_path / "run", "steps=60", "watchdog.straggler_steps=10", "micro_batch_size=8")
    started.wait_for_step(5)
    pid, is_over = started.rank_pid(1), threading.Event()

    def hold_up() -> None:
        while not is_over.is_set():
            for number, seconds in ((signal.SIGSTOP, 0.004), (signal.SIGCONT, 0.001)):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    return
                time.sleep(seconds)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        ended = started.end()
    finally:
        is_over.set()
        thread.join()
    assert ended.code == 0, ended.err
    slow = [event.fields for event in ended.events if event.fields.get("what") == "straggler"]
    assert {found["rank"] for found in slow} == {1}
    assert "rank 1 is slow: its own work takes" in ended.out
