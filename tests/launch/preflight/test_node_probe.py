"""What a node says of itself, on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.node_probe import PREFIX, Job, decode, encode, look, tokens_seen

ROOT = Path(__file__).resolve().parents[3]


def job(tmp_path: Path, **settings: Any) -> Job:
    return Job(name="here", token="t1", run_dir=tmp_path / "run", datasets={}, write_bytes=1 << 20, **settings)


def test_job_survives_the_command_line(tmp_path: Path) -> None:
    word = encode(job(tmp_path, port=29500))
    assert Job.model_validate_json(decode(word)) == job(tmp_path, port=29500)


def test_node_says_what_a_save_would_meet(tmp_path: Path) -> None:
    said = look(job(tmp_path))
    assert said["errors"] == {}
    assert (said["disk"]["renamed"], said["disk"]["locks"]) == (True, True)
    assert said["disk"]["written_bytes_per_s"] > 0
    assert tokens_seen(tmp_path / "run", "t1") == ["here"]
    assert list((tmp_path / "run" / ".preflight" / "t1").iterdir()) == [
        tmp_path / "run" / ".preflight" / "t1" / "here.token"
    ]


def test_full_disk_is_told_and_the_rest_is_still_looked_at(tmp_path: Path, mount_tmpfs: Callable[[str], Path]) -> None:
    full = mount_tmpfs("size=512k")
    said = look(Job(name="here", token="t1", run_dir=full, datasets={}, write_bytes=1 << 20))
    assert "No space left" in said["errors"]["disk"]
    assert said["versions"]["torch"]


def test_missing_dataset_is_told_by_the_contracts_words(tmp_path: Path) -> None:
    said = look(Job(name="a", token="t", run_dir=tmp_path, datasets={"web": tmp_path / "web"}, write_bytes=1 << 20))
    assert said["datasets"]["web"].startswith("!")
    assert "web" in said["datasets"]["web"]


def test_taken_port_is_told(tmp_path: Path) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert look(job(tmp_path, port=port))["port"] == "Address already in use"
    assert look(job(tmp_path, port=port))["port"] == ""


@pytest.mark.parametrize("busy", [False, True])
def test_gpus_are_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    process = "echo 'GPU-1, 77, python, 70000'" if busy else "true"
    devices_script = "echo '0, NVIDIA H100, 81559, 3, GPU-0'; echo '1, NVIDIA H100, 81559, 70003, GPU-1'"
    (tmp_path / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$1" in *compute-apps*) {process};; *) {devices_script};; esac\n'
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    devices = look(job(tmp_path))["gpus"]["devices"]
    assert [device["name"] for device in devices] == ["NVIDIA H100", "NVIDIA H100"]
    assert devices[1]["processes"] == (["pid 77 (python)"] if busy else [])


def test_probe_says_one_line_and_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['probe', {encode(job(tmp_path))!r}]\n"
        "runpy.run_module('launch.preflight.node_probe', run_name='__main__')\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert json.loads(line.removeprefix(PREFIX))["name"] == "here"
