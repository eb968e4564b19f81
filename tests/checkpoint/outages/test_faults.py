"""MLflow answers badly, late or not at all: what arrives in the end is the log, each row once."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from checkpoint import tracking
from checkpoint.events import MetricsFilter, events_file, read_events
from checkpoint.journal import journal_file, read_batches
from checkpoint.mlflow_connection import TrackingError
from checkpoint.tracking import Tracker

RunMaker = Callable[..., Path]
LogWriter = Callable[..., None]


@pytest.fixture
def run_key() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def run(new_run: RunMaker, write_log: LogWriter, run_key: str) -> Path:
    """40 steps of a run that has finished."""
    run = new_run("run", run_key=run_key)
    write_log(run, steps=40)
    return run


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


def told(run: Path) -> list[tuple[str, int, int, float]]:
    """(key, step, timestamp, value): what MLflow is to hold."""
    first = MetricsFilter()
    return sorted(
        (key, event.step, event.timestamp_ms, value)
        for event, _ in read_events(events_file(run))
        for key, value in first.new_metrics(event).items()
    )


def failing(fault: str, *, first: int = 1, last: int = 10**9, path: str = "log-batch") -> Callable[..., str | None]:
    """From the first to the last request of a kind."""
    seen = [0]

    def choose(method: str, asked: str) -> str | None:
        seen[0] += asked.endswith(path)
        return fault if asked.endswith(path) and first <= seen[0] <= last else None

    return choose


@pytest.mark.parametrize(("fault", "rows_are_in"), [("error", False), ("slow", True), ("lose", True)])
def test_rows_that_the_server_may_or_may_not_have_are_there_once_in_the_end(
    server: Any, proxy: Any, run: Path, run_key: str, fault: str, rows_are_in: bool
) -> None:
    # the first batch holds the params
    proxy.fault = failing(fault, first=2)
    begun_s = time.monotonic()
    with pytest.raises(TrackingError, match=rf"MLflow at {proxy.uri} did not answer or refused: "):
        Tracker(proxy.uri).ship_events(run)
    assert time.monotonic() - begun_s < 20
    assert (server.rows(run_key) == told(run)) == rows_are_in
    proxy.fault = lambda method, path: None
    Tracker(proxy.uri).ship_events(run)
    assert server.rows(run_key) == told(run)
    assert server.runs(run_key) == [("active", "FINISHED")]


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_an_answer_lost_in_the_middle_of_a_log_doubles_and_loses_nothing(
    server: Any, proxy: Any, run: Path, run_key: str, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "read_batches", lambda path, position: read_batches(path, position, batch_rows=20))
    proxy.fault = failing("lose", first=2 + batches)
    with pytest.raises(TrackingError):
        Tracker(proxy.uri).ship_events(run)
    # the batches that were answered, and the one that was not
    assert len(server.rows(run_key)) == 20 * (batches + 1)
    proxy.fault = lambda method, path: None
    Tracker(proxy.uri).ship_events(run)
    assert server.rows(run_key) == told(run)


def test_a_run_whose_making_was_not_answered_is_one_run(server: Any, proxy: Any, run: Path, run_key: str) -> None:
    proxy.fault = failing("lose", last=1, path="runs/create")
    Tracker(proxy.uri).ship_events(run)
    assert proxy.seen["create"] == 2
    assert server.runs(run_key) == [("active", "FINISHED"), ("deleted", "RUNNING")]
    assert server.rows(run_key) == told(run)


# Ends itself with signal 9 after the server has confirmed a batch and before the journal knows.
KILLED_SHIPPER = """
import os, signal, sys
from pathlib import Path
from checkpoint import tracking
send, calls = tracking.Tracker._send, []
read = tracking.read_batches
tracking.read_batches = lambda path, journal: read(path, journal, batch_rows=8)
def send_and_die(self, run_id, batch):
    send(self, run_id, batch)
    calls.append(batch)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
tracking.Tracker._send = send_and_die
tracking.Tracker(sys.argv[1]).ship_events(Path(sys.argv[2]))
"""


def test_a_shipper_killed_between_a_batch_and_its_journal(
    server: Any, new_run: RunMaker, write_log: LogWriter, run_key: str
) -> None:
    run = new_run("killed", run_key=run_key)
    write_log(run, steps=40, state="running")
    killed = subprocess.run([sys.executable, "-c", KILLED_SHIPPER, server.uri, str(run)], check=False)
    assert killed.returncode == -SIGKILL
    assert 0 < len(server.rows(run_key)) < len(told(run))
    write_log(run, steps=50, first_step=31)
    for _ in range(2):
        Tracker(server.uri).ship_events(run)
        assert server.rows(run_key) == told(run)
        journal_file(run).unlink()
    assert server.runs(run_key) == [("active", "FINISHED")]
