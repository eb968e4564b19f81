from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import status as status_module
from pipeline.document import PipelineError
from pipeline.executors import Finished, Started
from pipeline.plan import Unit
from pipeline.report import Tally
from pipeline.status import RunStatus
from pipeline.throughput import Throughput
from pipeline.unit import UnitRecord


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def test_it_says_who_runs_and_in_which_phase(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with RunStatus(path, name="demo", executor="local") as status:
        content = read(path)
        assert (content["state"], content["phase"], content["pid"]) == ("running", "plan", os.getpid())
        assert (content["name"], content["executor"], content["error"]) == ("demo", "local", None)
        status.enter_phase("units")
        assert read(path)["phase"] == "units"
    assert read(path)["state"] == "finished"
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_it_is_written_every_few_seconds_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / "status.json"
    with RunStatus(path, name="demo", executor="local") as status:
        status.watch(Throughput([], [], clock=lambda: now))
        now = 101.9
        status.refresh()
        assert "units_total" not in read(path)
        now = 102.0
        status.refresh()
        assert read(path)["units_total"] == 0
        assert read(path)["seconds_left"] is None


def test_a_phase_that_tells_nothing_is_not_taken_for_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "HEARTBEAT_S", 0.02)
    path = tmp_path / "status.json"
    with RunStatus(path, name="demo", executor="local"):
        before, deadline = path.stat().st_mtime_ns, time.monotonic() + 10
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > before
        assert read(path)["state"] == "running"


def test_the_last_word_is_not_older_than_the_end(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    throughput = Throughput([Unit(0, "web", ()), Unit(1, "web", ())], [])
    with RunStatus(path, name="demo", executor="local") as status:
        status.watch(throughput)
        throughput.note(Started(Unit(0, "web", ()), worker="pid 7"))
        status.enter_phase("units")
        assert [worker["worker"] for worker in read(path)["workers"]] == ["pid 7"]
        throughput.note(
            Finished(UnitRecord(index=0, source="web", size_bytes=0, shards={}, tally=Tally(), seconds=1.0))
        )
        throughput.note(Started(Unit(1, "web", ()), worker="pid 7"))
        status.refresh()
    assert (read(path)["units_done"], read(path)["workers"]) == (1, [])


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (PipelineError("no input\nmore"), "failed", "no input"),
        (KeyboardInterrupt(), "interrupted", "stopped by SIGINT"),
        (KeyboardInterrupt(signal.SIGTERM), "interrupted", "stopped by SIGTERM"),
    ],
)
def test_it_says_how_a_run_ended(tmp_path: Path, error: BaseException, state: str, text: str) -> None:
    path = tmp_path / "status.json"

    def run() -> None:
        with RunStatus(path, name="demo", executor="local"):
            raise error

    with pytest.raises(type(error)):
        run()
    assert (read(path)["state"], read(path)["error"]) == (state, text)


def test_a_run_does_not_end_because_its_status_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none" / "status.json"
    with caplog.at_level(logging.WARNING), RunStatus(path, name="demo", executor="local") as status:
        status.enter_phase("units")
    assert caplog.messages == [f"{path} cannot be written (No such file or directory); the run goes on without it"]
