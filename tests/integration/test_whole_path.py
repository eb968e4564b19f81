"""The main job by its commands alone: text, shards, a killed and resumed run, a proven export, MLflow, a sample."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoint.events import events_file, read_events
from checkpoint.manifest import list_steps
from launch.data.loader import PackedSamples, Source

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILLED_AFTER = 12, 7
PROMPT = "def encode(self, "
PIPELINE = (
    "pipeline", "run", str(ROOT / "configs/data/demo.yaml"), "output_dir=dataset", "workers=2",
    "sources.0.include=[json/*.py, email/*.py, asyncio/*.py]", "tokenizer.train.vocab_size=1024",
    "validation_fraction=0.2",
)  # fmt: skip
TRAIN = (
    "launch", "train", str(ROOT / "configs/train/demo.yaml"), "run_dir=runs/demo", "data.sources.0.path=dataset",
    "model.vocab_size=1024", "model.hidden_size=64", "model.intermediate_size=128", "model.num_hidden_layers=2",
    "model.num_attention_heads=4", "model.num_key_value_heads=2", "data.sequence_length=128", "batch_tokens=2048",
    f"steps={STEPS}", "schedule.warmup_steps=2", "schedule.decay_steps=4", "checkpoint.every_steps=5",
    "validation.every_steps=6", "validation.sequences=8", f"validation.samples.prompts=['{PROMPT}']",
    "validation.samples.max_new_tokens=24",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What the commands left and said."""

    folder: Path
    export: Path
    served: str
    sample: str

    @property
    def run(self) -> Path:
        return self.folder / "runs/demo"


def told_steps(run: Path) -> list[int]:
    """The steps of every telling of the training loss, in the order of the log."""
    return [event.step for event, _ in read_events(events_file(run)) if "train/loss" in event.fields]


def train_until_killed(commands: Any) -> None:
    """The command once, one of its ranks ended by -9 after a step that no checkpoint holds."""
    run = commands.folder / "runs/demo"
    with commands.start(*TRAIN) as job:
        deadline_s = time.monotonic() + 200
        while KILLED_AFTER not in told_steps(run) or not list_steps(run):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        log = (run / "logs" / "rank-1.log").read_text()
        os.kill(int(log.rpartition("process ")[2].split()[0]), signal.SIGKILL)
        _, shown = job.communicate(timeout=100)
        assert job.returncode != 0
        assert "another rank is gone" in shown
        assert "Traceback" not in shown
    states = [event.fields["state"] for event, _ in read_events(events_file(run)) if event.kind == "state"]
    assert states == ["running", "failed"]


@pytest.fixture(scope="module")
def made(commands: Any) -> Made:
    commands.run(*PIPELINE)
    train_until_killed(commands)
    commands.run("checkpoint", "serve", "--once", "runs")
    commands.run(*TRAIN)
    served = commands.run("checkpoint", "serve", "--once", "runs")
    sample = commands.run("launch", "generate", "runs/demo", PROMPT, "--max-new-tokens", "24")
    export = commands.folder / "runs/demo/exports" / f"step-{STEPS:08d}"
    return Made(commands.folder, export, served, sample.removesuffix("\n"))


def test_the_dataset_opens_as_a_hugging_face_dataset(made: Made) -> None:
    dataset = datasets.load_from_disk(str(made.folder / "dataset"))
    tokenizer = AutoTokenizer.from_pretrained(made.export)
    assert dataset[0]["input_ids"][-1] == tokenizer.eos_token_id
    assert "import" in tokenizer.decode(dataset[0]["input_ids"][:-1])


def test_the_resumed_run_told_some_steps_twice_and_none_never(made: Made) -> None:
    told = told_steps(made.run)
    assert set(told) == set(range(1, STEPS + 1))
    assert len(told) > STEPS


def test_mlflow_has_one_finished_run_and_each_step_once(made: Made) -> None:
    with sqlite3.connect(made.folder / "runs/mlflow.db") as store:
        statuses = store.execute("select status from runs").fetchall()
        steps = store.execute("select step from metrics where key='train/loss' order by step").fetchall()
    assert statuses == [("FINISHED",)]
    assert [step for (step,) in steps] == list(range(1, STEPS + 1))


def test_the_model_in_training_continued_the_prompt_as_its_export_does(made: Made) -> None:
    texts = {
        event.step: event.fields["text"] for event, _ in read_events(events_file(made.run)) if event.kind == "text"
    }
    assert sorted(texts) == [0, 6, STEPS]
    assert texts[STEPS] == f"{made.sample}\n"


def test_losses_in_bits_are_those_in_nats_by_the_bytes_of_the_tokens(made: Made) -> None:
    told = {key: value for event, _ in read_events(events_file(made.run)) for key, value in event.fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(made.export)
    validation = PackedSamples(
        [Source("source-code", made.folder / "dataset", 1.0)],
        seed=0,
        sequence_length=128,
        split="validation",
        shuffle=False,
    )
    labels = validation.read(np.arange(8)).labels.flatten().tolist()
    text_bytes = len(tokenizer.decode(labels, skip_special_tokens=True).encode(errors="surrogateescape"))
    bits = told["validation/loss"] * len(labels) / math.log(2) / text_bytes
    # a sequence may begin or end within a character, which decoding spells with more bytes
    assert told["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-3)
    assert told["validation_loss/source-code"] == told["validation/loss"]
    assert told["validation_bits_per_byte/source-code"] == told["validation/bits_per_byte"]


def test_the_service_says_what_it_proved(made: Made) -> None:
    assert "passed: loss" in made.served


def test_transformers_generates_the_sample_from_the_export(made: Made) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.export)
    model = AutoModelForCausalLM.from_pretrained(made.export)
    ids = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == made.sample
