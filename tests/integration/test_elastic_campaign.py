"""The acceptance run: 60 steps on two ranks, and the same killed twice and gone on with on one, three and two ranks."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import list_steps, read_manifest

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY, MICRO_BATCHES = 60, 5, 6
# 24 samples in 6 micro-batches: 1, 2, 3 and 6 ranks share them
SETTINGS = (
    "batch_tokens=1536", f"steps={STEPS}", "schedule.decay_steps=10", f"checkpoint.every_steps={EVERY}",
    "validation.every_steps=20",
)  # fmt: skip

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]


def samples_of_steps(records: Path, *, first_step: int) -> dict[int, list[str]]:
    """What the ranks together trained on, by step; a step that not all of them ended is left out."""
    ranks = [[json.loads(line) for line in whole_lines(file)] for file in sorted(records.iterdir())]
    own = MICRO_BATCHES // len(ranks)
    return {
        first_step + 1 + step: sorted(
            row for lines in ranks for micro_batch in lines[step * own : (step + 1) * own] for row in micro_batch
        )
        for step in range(min(len(lines) for lines in ranks) // own)
    }


def whole_lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1]


def kill_after(started: Any, step: int, *, rank: int) -> Any:
    started.wait_for_step(step, timeout_s=1500)
    os.kill(started.rank_pid(rank), signal.SIGKILL)
    ended = started.end(timeout_s=600)
    assert ended.code != 0
    return ended


def ship(runs: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "checkpoint", "serve", "--once", str(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    # a tiny model of no tokenizer has no export that could be proven; the metrics are shipped all the same
    assert "Traceback" not in done.stderr, done.stderr


def test_sixty_steps_killed_twice_on_two_one_three_and_two_ranks(start_training: Any, tmp_path: Path) -> None:
    whole = start_training(tmp_path / "whole" / "run", *SETTINGS, records=tmp_path / "whole-records").end(
        timeout_s=1500
    )
    assert whole.code == 0, whole.err
    expected = samples_of_steps(tmp_path / "whole-records", first_step=0)
    assert sorted(expected) == list(range(1, STEPS + 1))

    run = tmp_path / "elastic" / "run"
    attempts = [(2, 13), (1, 31), (3, 45), (2, None)]
    compared, resumed = 0, []
    for number, (ranks, killed_after) in enumerate(attempts):
        first_step = max(list_steps(run), default=0) if run.exists() else 0
        resumed.append(first_step)
        records = tmp_path / f"records-{number}"
        started = start_training(run, *SETTINGS, ranks=ranks, records=records)
        if killed_after is None:
            ended = started.end(timeout_s=1500)
            assert ended.code == 0, ended.err
        else:
            ended = kill_after(started, killed_after, rank=number % ranks)
        samples = samples_of_steps(records, first_step=first_step)
        assert samples == {step: expected[step] for step in samples}
        compared += len(samples)
        ship(run.parent)

    assert ended.states()[-1] == "finished"
    told = [event.fields for event in ended.events if "resharded_from" in event.fields]
    assert [(fields["resharded_from"], fields["resharded_to"]) for fields in told] == [(2, 1), (1, 3), (3, 2)]
    worst = {}
    for key in ("train/loss", "validation/loss"):
        ours, theirs = ended.metric(key), whole.metric(key)
        assert sorted(ours) == sorted(theirs)
        worst[key] = max(abs(ours[step] / theirs[step] - 1) for step in theirs)
        assert worst[key] < 1e-3
    assert ended.metric("train/learning_rate") == whole.metric("train/learning_rate")
    assert ended.metric("train/tokens_consumed") == whole.metric("train/tokens_consumed")
    last = [read_manifest(each.run / "checkpoints" / f"step-{STEPS:08d}") for each in (ended, whole)]
    assert last[0].samples_consumed == last[1].samples_consumed == STEPS * 24

    with sqlite3.connect(run.parent / "mlflow.db") as store:
        runs = store.execute("select status from runs").fetchall()
        rows = store.execute("select step from metrics where key='train/loss' order by step").fetchall()
    assert runs == [("FINISHED",)]
    assert [step for (step,) in rows] == list(range(1, STEPS + 1))
    print(f"\n{compared} steps of {len(attempts)} attempts, begun at steps {resumed}: the samples of each are those of")
    print("the uninterrupted run; largest relative difference of", end=" ")
    print(", ".join(f"{key}: {value:.1e}" for key, value in worst.items()), end="; ")
    print(f"MLflow: 1 run, {len(rows)} rows of train/loss")
