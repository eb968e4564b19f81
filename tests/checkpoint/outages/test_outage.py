"""The server is away for a third of a run, or for an hour: the service goes on by itself, and nothing is missing."""

from __future__ import annotations

import fcntl
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from checkpoint import failures
from checkpoint import service as service_module
from checkpoint.events import EventWriter, events_file, read_events
from checkpoint.mlflow_connection import TrackingError
from checkpoint.service import Service
from checkpoint.tracking import Tracker
from launch.cluster.launcher import free_port

THIRD = 40

RunMaker = Callable[..., Path]
LogWriter = Callable[..., None]
ServiceMaker = Callable[..., Service]


class TrainerLike(threading.Thread):
    """Holds the run's lock and tells a step at a time, as a trainer does; at each third somebody may do something."""

    def __init__(self, run: Path, at_third: Callable[[int], None]) -> None:
        super().__init__()
        self._run, self._at_third = run, at_third
        self._lock = (run / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def run(self) -> None:
        with EventWriter(events_file(self._run)) as log, self._lock:
            log.write("state", step=0, state="running")
            log.write("params", step=0, steps=3 * THIRD)
            for step in range(1, 3 * THIRD + 1):
                log.write("metrics", step=step, **{"train/loss": 10 - step / 100, "train/learning_rate": 0.003})
                time.sleep(0.02)
                if step % THIRD == 0:
                    self._at_third(step // THIRD)
            log.write("state", step=3 * THIRD, state="finished")


def test_server_killed_for_the_middle_third_of_a_run_has_every_step_once(
    own_server: Any, new_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real server, real time; two starts of `mlflow server` are most of what this test costs."""
    monkeypatch.setattr(service_module, "_SERVER_PAUSE_S", 0.1)
    run_key = uuid.uuid4().hex
    run = new_run("run", run_key=run_key)
    rows_at_third: list[int] = []

    def at_third(number: int) -> None:
        while number == 1 and not own_server.rows(run_key):
            time.sleep(0.02)  # the service loads mlflow
        if number == 1:
            own_server.stop(SIGKILL)
        rows_at_third.append(len(own_server.rows(run_key)))
        if number == 2:
            own_server.start()

    own_server.start()
    trainer = TrainerLike(run, at_third)
    pauses = {"first_pause_s": 0.1, "longest_pause_s": 0.1}
    service = make_service(run.parent, tracking_uri=own_server.uri, redraw_seconds=1000, jobs=pauses)
    trainer.start()
    problems: set[str] = set()
    while trainer.is_alive():
        problems.update(service.run_until_done().problems)
    time.sleep(0.2)
    status = service.run_until_done()
    assert (status.problems, status.runs[0].is_shipped) == ([], True)
    # it told of the outage, and shipped before and after
    assert any("did not answer or refused" in problem for problem in problems)
    assert 0 < rows_at_third[0] == rows_at_third[1] < 2 * 3 * THIRD
    losses = [(step, value) for key, step, _, value in own_server.rows(run_key) if key == "train/loss"]
    assert losses == [(step, 10 - step / 100) for step in range(1, 3 * THIRD + 1)]
    assert len(own_server.rows(run_key)) == 2 * 3 * THIRD
    stamps = {event.timestamp_ms for event, _ in read_events(events_file(run)) if event.kind == "metrics"}
    assert {stamp for _, _, stamp, _ in own_server.rows(run_key)} == stamps
    assert own_server.runs(run_key) == [("active", "FINISHED")]


def test_server_that_is_down_at_the_start_is_told_within_seconds(new_run: RunMaker, write_log: LogWriter) -> None:
    run, uri = new_run(), f"http://127.0.0.1:{free_port()}"
    write_log(run, steps=3)
    begun_s = time.monotonic()
    with pytest.raises(TrackingError, match=rf"MLflow at {uri} did not answer or refused"):
        Tracker(uri).ship_events(run)
    # MLflow's own default is 248 s; the bound leaves room for a busy machine
    assert time.monotonic() - begun_s < 30


class Clock:
    """Stands in for `time` where the service decides what is due."""

    now_s = 1e6

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None: ...


def test_after_an_hour_without_the_server_its_return_is_noticed_within_minutes(
    server: Any, proxy: Any, new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker, monkeypatch: Any
) -> None:
    clock, run_key = Clock(), uuid.uuid4().hex
    monkeypatch.setattr(failures, "time", clock)
    monkeypatch.setattr(service_module, "time", clock)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    run = new_run("hour", run_key=run_key)
    write_log(run, steps=5, state="running")
    proxy.fault = lambda method, path: "error"
    service = make_service(run.parent, tracking_uri=proxy.uri, redraw_seconds=1000, jobs={"attempts": 1})

    def minutes_until_shipped(*, most: int) -> int:
        for minute in range(most):
            if service.run_until_done().runs[0].is_shipped:
                return minute
            clock.now_s += 60
        return most

    assert minutes_until_shipped(most=60) == 60
    # a dead server is asked now and then, each time with a second try, and is never given up
    assert 10 <= sum(proxy.seen.values()) <= 40
    assert not service.status.runs[0].troubles[0].is_final
    write_log(run, steps=9, first_step=6)
    proxy.fault = lambda method, path: None
    assert minutes_until_shipped(most=60) <= 5
    assert [step for key, step, *_ in server.rows(run_key) if key == "train/loss"] == list(range(1, 10))
