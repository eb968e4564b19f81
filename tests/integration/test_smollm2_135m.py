"""The published 135M at its real size: `make test-campaign`, some ten minutes and 8 GB on two cores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoint.events import events_file, read_events
from checkpoint.manifest import list_steps

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = 134_515_008


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_135m_trains_checkpoints_exports_and_proves_in_bfloat16(commands: Any) -> None:
    commands.run(
        "pipeline",
        "run",
        str(ROOT / "configs/data/demo.yaml"),
        "output_dir=dataset",
        "tokenizer.train.vocab_size=49152",
    )
    commands.run(
        "launch", "train", str(ROOT / "configs/train/smollm2-135m.yaml"), "run_dir=runs/135m",
        "data.sources=[{name: code, path: dataset}]", "data.sequence_length=256", "batch_tokens=1024",
        "micro_batch_size=1", "steps=3", "schedule.warmup_steps=1", "schedule.decay_steps=1", "validation.sequences=4",
        "launcher.ranks_per_node=2",
    )  # fmt: skip
    run = commands.folder / "runs/135m"
    print(commands.run("checkpoint", "serve", "--once", "runs"))

    events = [event for event, _ in read_events(events_file(run))]
    parameters = next(event.fields for event in events if event.kind == "params")
    assert (parameters["num_parameters"], parameters["precision"], parameters["world_size"]) == (
        PARAMETERS,
        "bfloat16",
        2,
    )
    steps = [event.fields for event in events if "train/data_wait_s" in event.fields]
    shares = [step["train/data_wait_s"] / step["train/step_time_s"] for step in steps]
    print(f"of a step's time, waited for data: {', '.join(f'{share:.4%}' for share in shares)}")
    assert len(shares) == 3
    assert max(shares) < 0.01
    assert list_steps(run) == [3]
    proof = json.loads((run / "exports/step-00000003/proof.json").read_text())
    assert proof["verdict"] == "passed"
    assert abs(proof["difference"]) < 0.01
    shutil.rmtree(commands.folder)
