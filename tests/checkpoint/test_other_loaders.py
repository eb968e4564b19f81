"""Exports in the hands of others: older transformers, CTranslate2 and lm-eval, each in an environment of its own.

`make test-exports`. An environment is a venv that sees this one's packages behind those that it installs; pip is asked
for them anew each time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from checkpoint.export import export_checkpoint
from checkpoint.manifest import checkpoint_directory, export_directory, read_manifest
from model.hf import load_pretrained

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(600)]

PROGRAMS = Path(__file__).with_name("other_loaders")
ROOT = Path(__file__).parents[2]
TEXT = "the loss falls while the model learns"
TASK = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""

MakeEnvironment = Callable[..., Path]
RunMaker = Callable[[str], Path]


@pytest.fixture(scope="module")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> MakeEnvironment:
    """`make_environment("transformers==4.46.3")`: the Python of a venv with this package before our own."""

    def make(*packages: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "lib" / version / "site-packages"
        (site / "behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        python = folder / "bin" / "python"
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return python

    return make


def run_program(python: Path, *arguments: object) -> dict[str, Any]:
    """What a program prints last, as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_rows(run: Path, file: Path) -> float:
    """The probe's rows as JSON; the trainer's loss on them."""
    probe = read_manifest(checkpoint_directory(run, 4)).probe
    assert probe is not None
    file.write_text(json.dumps(probe.token_ids))
    return probe.mean_negative_log_likelihood


@pytest.mark.parametrize("version", ["4.46.3", "4.57.6"])
def test_older_transformers_find_the_trainers_loss(
    version: str, exported_run: Path, make_run: RunMaker, tmp_path: Path, make_environment: MakeEnvironment
) -> None:
    python, rows = make_environment(f"transformers=={version}"), tmp_path / "rows.json"
    tied = make_run("bfloat16")
    assert export_checkpoint(tied, 4, max_shard_bytes=60_000).passed
    for run, dtype, tolerance in ((exported_run, "float32", 1e-4), (tied, "bfloat16", 1e-2)):
        loss, folder = write_rows(run, rows), export_directory(run, 4)
        found = run_program(python, PROGRAMS / "with_transformers.py", folder, rows, TEXT)
        print(f"transformers {found['version']}, {dtype}: {found['loss']:.6f}, the trainer's {loss:.6f}")
        assert found["version"] == version
        assert found["dtype"] == f"torch.{dtype}"
        assert found["loss"] == pytest.approx(loss, abs=tolerance)
        assert found["ids"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
        assert len(found["generated"]) > len(found["ids"])


def test_ctranslate2_finds_the_trainers_loss(
    exported_run: Path, tmp_path: Path, make_environment: MakeEnvironment
) -> None:
    # its converter reads transformers 4 and 5; 4.57 is what it was released with
    python, rows = make_environment("ctranslate2==4.8.5", "transformers==4.57.6"), tmp_path / "rows.json"
    loss = write_rows(exported_run, rows)
    export = export_directory(exported_run, 4)
    found = run_program(python, PROGRAMS / "with_ctranslate2.py", export, rows, tmp_path / "converted")
    print(f"CTranslate2 {found['version']}: {found['loss']:.6f}, the trainer's {loss:.6f}")
    assert found["loss"] == pytest.approx(loss, abs=1e-4)


def test_lm_eval_runs_a_local_task_and_finds_what_our_model_finds(
    exported_run: Path, tmp_path: Path, make_environment: MakeEnvironment
) -> None:
    python = make_environment("lm-eval[hf]==0.4.13")
    texts = [f"{TEXT} the text of document {number}" for number in range(5)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_text.yaml").write_text(TASK.format(file=tmp_path / "text.jsonl"))
    command = [
        str(python), "-m", "checkpoint", "evaluate", str(exported_run), "evaluation.lm_eval_tasks=[local_text]",
        f"evaluation.lm_eval_include={tmp_path / 'tasks'}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    name, value = done.stdout.split()
    wanted = our_bits_per_byte(export_directory(exported_run, 4), texts)
    print(f"lm-eval: {float(value):.6f} bits a byte, ours {wanted:.6f}")
    assert name == "lm_eval/local_text/bits_per_byte"
    assert float(value) == pytest.approx(wanted, rel=1e-4)


def our_bits_per_byte(export: Path, texts: list[str]) -> float:
    """Of each text after the end-of-sequence token, as the harness counts it."""
    model, tokenizer = load_pretrained(export).eval(), Tokenizer.from_file(str(export / "tokenizer.json"))
    total = 0.0
    for text in texts:
        ids = torch.tensor([[0, *tokenizer.encode(text).ids]])
        with torch.inference_mode():
            logits = model(ids)[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return total / sum(len(text.encode()) for text in texts) / math.log(2)
