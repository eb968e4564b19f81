"""How fast an event log gets into MLflow, on a local `mlflow server` with a SQLite database.

    python benchmarks/shipping.py --rows 100000 --rounds 3

Ours reads the log, sends it and keeps its journal. Beside it what a training script does: a request a value
(`log_metric`), a request a step (`log_metrics`), both on fewer rows, whose time is scaled to all; and the client's own
`log_batch` of 1,000 rows from memory, without a log or a journal, which is as fast as MLflow takes them. In turn, each
time into a new run; medians, with the fastest and the slowest round. `CPU` is what client and server worked together,
which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from local_ranks import free_port

from checkpoint.events import EventWriter, events_file
from checkpoint.run_record import RunRecord, write_run
from checkpoint.tracking import Tracker

KEYS = 10  # of a step
BATCH_ROWS = 1000


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None:
                    raise SystemExit("mlflow server did not start; `python -m mlflow server` says why") from None
                time.sleep(0.5)
        yield uri, psutil.Process(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def write_run_of(folder: Path, *, rows: int) -> Path:
    run = folder / uuid.uuid4().hex
    run.mkdir()
    write_run(run, RunRecord(run_key=run.name, name="shipping", created_ms=0, code_revision="", versions={}))
    with EventWriter(events_file(run)) as log:
        log.write("state", step=0, state="running")
        for step in range(1, rows // KEYS + 1):
            log.write("metrics", step=step, **metrics_of(step))
        log.write("state", step=rows // KEYS, state="finished")
    return run


def cpu_seconds(server: psutil.Process) -> float:
    """Of this process and all of the server's, so far."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return time.process_time() + sum(one.user + one.system for one in times)


def metrics_of(step: int) -> dict[str, float]:
    return {f"train/metric_{key}": key + 1 / step for key in range(KEYS)}


class Ways:
    """Each puts so many rows into a run of its own and returns nothing."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._folder, self._tracker = folder, Tracker(uri)
        self._client = self._tracker.client
        self._experiment = self._client.create_experiment("peers")

    def ours(self, rows: int) -> Callable[[], object]:
        run = write_run_of(self._folder, rows=rows)
        return lambda: self._tracker.ship_events(run)

    def a_value_a_request(self, rows: int) -> Callable[[], object]:
        run_id = self._new_run()

        def act() -> None:
            for step in range(1, rows // KEYS + 1):
                for key, value in metrics_of(step).items():
                    self._client.log_metric(run_id, key, value, step=step)

        return act

    def a_step_a_request(self, rows: int) -> Callable[[], object]:
        import mlflow

        mlflow.set_tracking_uri(self._tracker.client.tracking_uri)
        run_id = self._new_run()

        def act() -> None:
            for step in range(1, rows // KEYS + 1):
                mlflow.log_metrics(metrics_of(step), step=step, run_id=run_id)

        return act

    def bare_batches(self, rows: int) -> Callable[[], object]:
        from mlflow.entities import Metric

        run_id = self._new_run()
        metrics = [Metric(*item, 1, step) for step in range(1, rows // KEYS + 1) for item in metrics_of(step).items()]

        def act() -> None:
            for begin in range(0, rows, BATCH_ROWS):
                self._client.log_batch(run_id, metrics=metrics[begin : begin + BATCH_ROWS])

        return act

    def _new_run(self) -> str:
        return str(self._client.create_run(self._experiment).info.run_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with mlflow_server(folder) as (uri, server):
            ways = Ways(uri, folder)
            contenders: list[tuple[str, Callable[[int], Callable[[], Any]], int]] = [
                ("ours, log to MLflow", ways.ours, options.rows),
                ("log_batch of 1,000, from memory", ways.bare_batches, options.rows),
                ("log_metrics, a request a step", ways.a_step_a_request, min(options.rows, 2_000)),
                ("log_metric, a request a value", ways.a_value_a_request, min(options.rows, 300)),
            ]
            seconds: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
            worked: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
            for _ in range(options.rounds):
                for name, way, rows in contenders:
                    act = way(rows)
                    began_s, began_cpu_s = time.perf_counter(), cpu_seconds(server)
                    act()
                    seconds[name].append((time.perf_counter() - began_s) * options.rows / rows)
                    worked[name].append((cpu_seconds(server) - began_cpu_s) * options.rows / rows)
            with sqlite3.connect(folder / "mlflow.db") as store:
                (stored,) = store.execute("select count(*) from metrics").fetchone()
    assert stored == options.rounds * sum(rows for _, _, rows in contenders)
    ours_s = statistics.median(seconds[contenders[0][0]])
    print(f"{options.rows:,} rows, {KEYS} a step, {options.rounds} rounds")
    print(f"{'':34} {'seconds':>9} {'fastest to slowest':>20} {'rows/s':>8} {'of ours':>8} {'CPU':>9}  measured on")
    for name, _, rows in contenders:
        median_s = statistics.median(seconds[name])
        spread = f"{min(seconds[name]):,.1f} to {max(seconds[name]):,.1f}"
        scaled = f"{rows:,} rows" + (", scaled" if rows < options.rows else "")
        rate = options.rows / median_s
        cpu_s = statistics.median(worked[name])
        figures = f"{median_s:>9,.1f} {spread:>20} {rate:>8,.0f} {median_s / ours_s:>7.1f}x {cpu_s:>9,.1f}"
        print(f"{name:34} {figures}  {scaled}")


if __name__ == "__main__":
    main()
