"""A data run in MLflow: a real process, killed with signal 9 and started again, a real service, a real database."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint.config import ServiceConfig
from checkpoint.events import events_file, read_events
from checkpoint.jobs import Job, Performer
from checkpoint.mlflow_run import EXPERIMENT
from checkpoint.service import Service
from checkpoint.tracking import Tracker
from pipeline.shards.format import read_manifest

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "loss", "falls", "while", "a", "model", "learns", "text,", "code", "and", "numbers:", "12", "345"]
CONFIG = """
name: tiny
output_dir: {folder}/data/tiny
run_dir: {folder}/runs/tiny-data
sources: [{{name: words, type: jsonl, files: ["{folder}/corpus/*.jsonl"]}}]
tokenizer: {{train: {{vocab_size: 300, sample_bytes: 100_000}}}}
filters: [{{type: length, min_characters: 40}}]
unit_size_bytes: 20_000
workers: 2
"""
# as a user starts it, but for the intervals, which would take minutes
PIPELINE = """
import sys
from pipeline import cli, run_events, status
run_events.METRICS_INTERVAL_S = status.STATUS_INTERVAL_S = 0.02
sys.exit(cli.main(["run", sys.argv[1]]))
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """About 3 MB in 150 units."""
    draw = random.Random(1)
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / "words.jsonl").open("w") as file:
        for _ in range(5000):
            file.write(json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(1, 200)))}) + "\n")
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "config.yaml"


def start(config_file: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(config_file.parent / "cache")}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PIPELINE, str(config_file)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for_rows(run: Path, process: subprocess.Popen[str], *, count: int) -> None:
    deadline_s = time.monotonic() + 120
    while sum("progress/tokens" in event.fields for event, _ in read_events(events_file(run))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "no progress was told"
        time.sleep(0.002)


def ship(run: Path) -> None:
    """The service's job, in this process: one of its own takes seconds to load mlflow."""
    performer = Performer(Service(run.parent, ServiceConfig()).context)
    assert performer.perform(Job(kind="ship", run=run)).blame == "nobody"


def logged(runs: Path) -> tuple[Tracker, Any]:
    """The tracker, and the one MLflow run there is."""
    tracker = Tracker(Service(runs, ServiceConfig()).tracking_uri)
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
    (run,) = tracker.client.search_runs([experiment.experiment_id])
    return tracker, run


def test_a_data_run_killed_and_resumed_is_one_run_without_a_row_twice(config_file: Path) -> None:
    runs = config_file.parent / "runs"
    run = runs / "tiny-data"
    process = start(config_file)
    wait_for_rows(run, process, count=3)
    process.send_signal(signal.SIGSTOP)
    ship(run)
    assert logged(runs)[1].info.status == "RUNNING"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    ship(run)
    assert logged(runs)[1].info.status == "KILLED"

    resumed = start(config_file)
    _, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, errors
    ship(run)
    (run / "service" / "journal.json").unlink()  # all is sent again
    ship(run)
    tracker, finished = logged(runs)
    assert finished.info.status == "FINISHED"

    manifest = read_manifest(config_file.parent / "data" / "tiny")
    for key in finished.data.metrics:
        rows = tracker.client.get_metric_history(finished.info.run_id, key)
        steps = [row.step for row in rows]
        assert len(steps) == len(set(steps)), f"{key} was told twice at a step"
    assert len(tracker.client.get_metric_history(finished.info.run_id, "progress/tokens")) > 3
    assert finished.data.metrics["dataset/tokens"] == finished.data.metrics["progress/tokens"] == manifest.tokens
    assert finished.data.metrics["dataset/dropped/too_short"] == manifest.dropped["too_short"].documents
    assert finished.data.params["tokenizer.train.vocab_size"] == "300"
    assert finished.data.tags["smollm2.kind"] == "data"
    assert finished.data.tags["smollm2.dataset.tiny"] == manifest.digest()
    (dataset,) = finished.inputs.dataset_inputs
    assert dataset.dataset.name == "tiny"
    stored = {path.name for path in (runs / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"report.json", "report.html", "manifest.json"}
