"""A proven export without a training run behind it, and the command that publishes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.export_folder import PROOF_FILE, ProofReport, digest_export
from checkpoint.manifest import export_directory
from checkpoint.run_record import read_run, write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def add_export() -> Callable[..., Path]:
    """`add_export(run, 4, weights=b"…")`: an export as the service leaves it, with a proof of exactly its files."""

    def add(run: Path, step: int, *, weights: bytes = b"weights") -> Path:
        export = export_directory(run, step)
        export.mkdir(parents=True)
        (export / "model.safetensors").write_bytes(weights)
        (export / "config.json").write_text(f'{{"step": {step}}}\n')
        (export / "tokenizer.json").write_text("{}\n")
        proof = ProofReport(
            verdict="passed", reasons=(), step=step, expected=3.0, got=3.0, difference=0.0, tolerance=0.01,
            probe_tokens=1024, dtype="bfloat16", transformers_version="5", torch_version="2",
            files=digest_export(export),
        )  # fmt: skip
        (export / PROOF_FILE).write_text(proof.model_dump_json())
        return export

    return add


@pytest.fixture
def other_run(new_run: Callable[..., Path], add_export: Callable[..., Path]) -> Path:
    """A run of another folder and key that is named `small` too, with a proven export of step 9."""
    made = new_run("elsewhere", run_key="e" * 32)
    write_run(made, read_run(made).model_copy(update={"name": "small"}))
    add_export(made, 9, weights=b"other")
    return made


@pytest.fixture
def publish() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`publish(run, 4, url, **environment)`: the command in a process of its own."""

    def run_command(run: Path, step: int, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "checkpoint", "publish", str(run), "--step", str(step), "--to", url]
        inherited = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, env=inherited, capture_output=True, text=True)

    return run_command
