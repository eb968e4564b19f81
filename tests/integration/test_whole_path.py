"""The main job by its commands alone: text, shards, a killed and resumed run, a proven export, MLflow, a sample."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoint.events import events_file, read_events

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILLED_AFTER = 12, 7
PROMPT = "def encode(self, "


def smollm2(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "configs.command", *arguments]


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(smollm2(*arguments), cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def train_arguments(run_dir: str) -> Sequence[str]:
    return (
        "launch", "train", str(ROOT / "configs/train/demo.yaml"), f"run_dir={run_dir}", "data.sources.0.path=dataset",
        "model.vocab_size=1024", "model.hidden_size=64", "model.intermediate_size=128", "model.num_hidden_layers=2",
        "model.num_attention_heads=4", "model.num_key_value_heads=2", "data.sequence_length=128", "batch_tokens=2048",
        "micro_batch_size=8", f"steps={STEPS}", "schedule.warmup_steps=2", "schedule.decay_steps=4",
        "checkpoint.every_steps=5", "validation.every_steps=6", "validation.sequences=8",
    )  # fmt: skip


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Every telling of the training loss, in the order of the log."""
    events = (event for event, _ in read_events(events_file(run_dir)))
    return [(event.step, event.fields["train/loss"]) for event in events if "train/loss" in event.fields]


def train_and_kill_a_rank(folder: Path, run_dir: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = smollm2(*train_arguments(run_dir))
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        deadline_s = time.monotonic() + 200
        while not any(step >= KILLED_AFTER for step, _ in losses(folder / run_dir)):
            assert job.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        log = (folder / run_dir / "logs" / "rank-1.log").read_text()
        os.kill(int(log.rpartition("process ")[2].split()[0]), signal.SIGKILL)
        assert job.wait(timeout=60) != 0


@dataclass(frozen=True)
class Made:
    folder: Path
    uninterrupted: Path
    killed: Path
    export: Path
    sample: str
    served: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("whole_path")
    run(
        folder, "pipeline", "run", str(ROOT / "configs/data/demo.yaml"), "output_dir=dataset", "workers=2",
        "sources.0.include=[json/*.py, email/*.py, asyncio/*.py]", "tokenizer.train.vocab_size=1024",
        "validation_fraction=0.2",
    )  # fmt: skip
    run(folder, *train_arguments("runs/uninterrupted"))
    train_and_kill_a_rank(folder, "runs/killed")
    run(folder, *train_arguments("runs/killed"))
    served = run(folder, "checkpoint", "serve", "--once", "runs")
    run(folder, "checkpoint", "serve", "--once", "runs")
    sample = run(folder, "launch", "generate", "runs/killed", PROMPT, "--max-new-tokens", "24")
    export = folder / "runs/killed/exports" / f"step-{STEPS:08d}"
    return Made(folder, folder / "runs/uninterrupted", folder / "runs/killed", export, sample, served)


def test_the_dataset_opens_as_a_hugging_face_dataset(made: Made) -> None:
    dataset = datasets.load_from_disk(str(made.folder / "dataset"))
    tokenizer = AutoTokenizer.from_pretrained(made.export)
    assert dataset[0]["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(dataset[0]["input_ids"][:-1]).isprintable() is False  # lines of source code
    assert dataset.num_rows > 20


def test_a_killed_run_repeats_the_uninterrupted_one_bit_for_bit(made: Made) -> None:
    expected = dict(losses(made.uninterrupted))
    told = losses(made.killed)
    assert {step for step, _ in told} == set(expected) == set(range(1, STEPS + 1))
    assert len(told) > STEPS, "the kill should have cost steps that were told twice"
    assert [(step, loss) for step, loss in told if loss != expected[step]] == []


def test_mlflow_has_one_run_and_each_step_once(made: Made) -> None:
    with sqlite3.connect(made.folder / "runs/mlflow.db") as store:
        runs = store.execute("select name, status from runs order by name").fetchall()
        steps = store.execute(
            "select m.step from metrics m join runs r using (run_uuid) where r.name='demo' and m.key='train/loss' "
            "group by m.run_uuid, m.step having count(*) = 1"
        ).fetchall()
        rows = store.execute("select count(*) from metrics where key='train/loss'").fetchone()[0]
    assert [status for _, status in runs] == ["FINISHED", "FINISHED"]
    assert len(steps) == rows == 2 * STEPS


def test_the_service_says_what_it_proved(made: Made) -> None:
    assert made.served.count("passed: loss") == 2


def test_transformers_generates_the_sample_from_the_export(made: Made) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.export)
    model = AutoModelForCausalLM.from_pretrained(made.export, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, use_cache=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == made.sample.removesuffix("\n")
