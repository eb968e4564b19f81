"""A run that draws its progress on a terminal, which is closed meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def config_file(tmp_path: Path, corpus: Path, make_config: MakeConfig) -> Path:
    """More than a hundred units."""
    path = tmp_path / "config.yaml"
    path.write_text(dump(make_config(workers=1, unit_size_bytes=200)))
    return path


def close_terminal_of(config_file: Path, dataset: Path, *, hang_up: signal.Handlers) -> int:
    """Of a run, after its second unit; its exit code."""

    def begin() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, hang_up)

    ours, terminal = os.openpty()
    command = [sys.executable, "-m", "pipeline", "run", str(config_file)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=begin
    )
    os.close(terminal)
    while len(list(dataset.glob(".work/units/*.json"))) < 2:
        assert process.poll() is None, "it ended before the terminal could be closed"
        if select.select([ours], [], [], 0.005)[0]:
            os.read(ours, 1 << 16)
    os.close(ours)
    return process.wait(timeout=60)


def test_a_run_is_interrupted_by_the_signal_that_tells_it(config_file: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    assert close_terminal_of(config_file, dataset, hang_up=signal.SIG_DFL) == 128 + signal.SIGHUP
    status = json.loads((dataset / "status.json").read_bytes())
    assert (status["state"], status["error"]) == ("interrupted", "stopped by SIGHUP")


def test_a_run_that_ignores_that_signal_goes_on(config_file: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    close_terminal_of(config_file, dataset, hang_up=signal.SIG_IGN)
    assert json.loads((dataset / "status.json").read_bytes())["state"] == "finished"
