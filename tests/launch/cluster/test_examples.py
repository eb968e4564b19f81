"""The files of configs/cluster: that their readers read them, and that the Slurm script saves, requeues and tells."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.cluster.hostfile import read_hostfile

EXAMPLES = Path(__file__).resolve().parents[3] / "configs" / "cluster"


def test_hostfile_names_two_nodes():
    assert [(host.name, host.slots) for host in read_hostfile(EXAMPLES / "hostfile")] == [("node-1", 8), ("node-2", 8)]


def test_every_line_of_deepspeed_env_is_a_variable():
    # DeepSpeed splits each line at its first "=", and fails for one that has none
    for line in (EXAMPLES / "deepspeed_env").read_text().splitlines():
        name, _, value = line.partition("=")
        assert name.isidentifier()
        assert value


@pytest.fixture
def slurm_job(tmp_path):
    """Starts the script with a stand-in for smollm2, and a scontrol that notes how it was called."""

    def start(smollm2: str) -> subprocess.Popen[bytes]:
        programs = tmp_path / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in {"smollm2": smollm2, "scontrol": f'echo "$@" > {tmp_path}/scontrol.called'}.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "77"}
        script = ["bash", str(EXAMPLES / "slurm.sh"), "config.yaml", "name=a b"]
        return subprocess.Popen(script, env=environment, cwd="/")

    return start


def test_slurm_script_trains_in_the_folder_of_sbatch_with_its_arguments(slurm_job, tmp_path):
    job = slurm_job('printf "%s\\n" "$PWD" "$@" > called')
    assert job.wait(timeout=30) == 0
    assert (tmp_path / "called").read_text().splitlines() == [
        str(tmp_path),
        "launch",
        "train",
        "--max-restarts",
        "10",
        "config.yaml",
        "name=a b",
    ]
    assert not (tmp_path / "scontrol.called").exists()


def test_slurm_script_passes_a_failure_on(slurm_job, tmp_path):
    assert slurm_job("exit 2").wait(timeout=30) == 2
    assert not (tmp_path / "scontrol.called").exists()


@pytest.mark.parametrize(("number", "code", "requeues"), [(signal.SIGUSR1, 138, True), (signal.SIGTERM, 143, False)])
def test_slurm_script_waits_for_the_saving_and_requeues_if_time_is_over(
    slurm_job, tmp_path, number: signal.Signals, code: int, requeues: bool
):
    name = number.name.removeprefix("SIG")
    job = slurm_job(f"trap 'sleep 0.3; touch saved; exit {code}' {name}\ntouch begun\nwhile true; do sleep 0.05; done")
    deadline_s = time.monotonic() + 30
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    job.send_signal(number)
    assert job.wait(timeout=30) == code
    assert (tmp_path / "saved").exists()
    called = tmp_path / "scontrol.called"
    assert (called.read_text() if called.exists() else "") == ("requeue 77\n" if requeues else "")
