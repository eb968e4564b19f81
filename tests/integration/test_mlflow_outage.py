"""The acceptance run of shipping: a real run, the real service, and an MLflow server that is gone for a third of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIRD = 300

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]


def test_server_killed_for_the_middle_third_of_a_real_run_has_every_step_once(
    start_training: Any, make_mlflow_server: Callable[[Path], Any], tmp_path: Path
) -> None:
    server, run = make_mlflow_server(tmp_path), tmp_path / "runs" / "run"
    server.start()
    run.parent.mkdir()
    service = subprocess.Popen(
        [sys.executable, "-m", "checkpoint", "serve", str(run.parent), "--tracking-uri", server.uri,
         "poll_seconds=0.5", "http.port=0", "jobs.first_pause_s=0.5", "jobs.longest_pause_s=1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        settings = (f"steps={3 * THIRD}", "checkpoint.every_steps=100", "validation.every_steps=100")
        started = start_training(run, *settings, "schedule.decay_steps=10", "logging.system_every_s=1")
        started.wait_for_step(THIRD)
        key = json.loads((run / "run.json").read_text())["run_key"]
        wait_for(lambda: len(server.rows(key)) > 0, "the first rows")
        server.stop(SIGKILL)
        before = len(server.rows(key))
        started.wait_for_step(2 * THIRD)
        assert len(server.rows(key)) == before
        server.start()
        ended = started.end()
        assert ended.code == 0, ended.err
        wait_for(lambda: server.runs(key) == [("active", "FINISHED")], "the end of the shipment")
    finally:
        service.send_signal(SIGTERM)
        said = service.communicate()[1]
    assert "did not answer or refused" in said
    told = sorted(
        (name, event.step, event.timestamp_ms, value)
        for event in ended.events
        if event.kind == "metrics"
        for name, value in event.fields.items()
    )
    rows = server.rows(key)
    assert rows == told
    assert [step for name, step, *_ in rows if name == "train/loss"] == list(range(1, 3 * THIRD + 1))
    assert any(name == "system/node-0/cpu_utilization_percentage" for name, *_ in rows)
    print(f"\n{3 * THIRD} steps, {len(rows):,} rows, {before:,} of them from before the server was killed: each once")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    # after a failure the service leaves a server alone for a minute
    deadline_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come"
        time.sleep(0.2)
