"""The command on this machine: planted faults all at once, and a trial that finds none."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load
from launch.cli import main
from launch.config import TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.preflight import rank_probe
from launch.preflight.preflight import preflight
from launch.preflight.rank_probe import RankJob
from launch.trainer.ranks import RankEnvironment
from model.hf import save_pretrained
from model.init import initialize
from model.transformer import SmolLM2


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def found(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["preflight", str(config), *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def problems(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["check"]: finding["what"] for finding in findings if finding["status"] == "problem"}


def test_five_planted_faults_are_all_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code, findings = found(
            config,
            capsys,
            "launcher.ranks_per_node=4000",  # over the cores, and no batch for so many
            f"launcher.master_port={port}",  # taken
            f"data.sources.0.path={tmp_path / 'nowhere'}",
            "--keep=1000000000",  # of 0.2 MB each
        )
    told = problems(findings)
    assert code == 1
    assert "slots=4000, but the node shows " in told["slots"]
    assert told["port"] == "the rendezvous port: Address already in use"
    assert str(tmp_path / "nowhere") in told["data"]
    assert "1000000000 checkpoints take" in told["disk"]
    assert "is not a multiple of data.sequence_length * micro_batch_size * 4000 ranks" in told["batch"]
    assert all(finding["fix"] for finding in findings if finding["status"] == "problem")
    trial = [finding for finding in findings if finding["check"] in ("all-reduce", "step")]
    assert {finding["status"] for finding in trial} == {"not checked"}
    assert "a trial needs these mended first: port, slots" in trial[0]["what"]
    assert not (tmp_path / "run").exists()
    about_data = [finding for finding in findings if finding["check"] == "data" and finding["status"] == "problem"]
    assert [finding["fix"] for finding in about_data] == [
        "make it with `smollm2 pipeline run`, or copy it there, or share its folder"
    ]


def test_a_store_that_does_not_answer_is_a_finding(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(config: TrainConfig) -> None:
        raise StoreUnreachableError("s3://data/web cannot be read (the line is cut); check the endpoint")

    monkeypatch.setattr("launch.preflight.start.read_inputs", read)
    code, findings = found(config, capsys, "launcher.ranks_per_node=4000")  # no trial
    assert code == 1
    assert problems(findings)["data"] == "s3://data/web cannot be read (the line is cut)"


def test_run_folder_that_was_there_stays(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    found(config, capsys, "launcher.ranks_per_node=4000")  # no trial
    assert list((tmp_path / "run").iterdir()) == []


def test_bad_lines_of_a_hostfile_and_a_host_that_is_not_there(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("nowhere.invalid slots=1\nnowhere.invalid slots=2\nother slots=many\n")
    code, findings = found(config, capsys, f"launcher.hostfile={hostfile}", "launcher.ranks_per_node=null")
    lines = [f"{finding['check']} {finding['where']}: {finding['what']}" for finding in findings]
    assert code == 1
    assert f"hostfile all: {hostfile}:2: nowhere.invalid stands on line 1 already" in lines
    assert f"hostfile all: {hostfile}:3: slots=many of other: wanted a whole number from 1 on, such as slots=8" in lines
    assert any(line.startswith("reach nowhere.invalid: ") for line in lines)


def test_slots_are_the_ranks_that_the_run_starts(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("here slots=4000\n")
    # a host that is this machine
    (tmp_path / "ssh").write_text('#!/bin/bash\nexec bash -c "${@: -1}"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with socket.socket() as listener:  # so that there is no trial
        listener.bind(("", 0))
        listener.listen()
        port = f"launcher.master_port={listener.getsockname()[1]}"
        _, findings = found(config, capsys, f"launcher.hostfile={hostfile}", "launcher.ranks_per_node=1", port)
    assert list(problems(findings)) == ["port"]
    [slots] = [finding for finding in findings if finding["check"] == "slots"]
    assert slots["what"] == f"1 of {len(os.sched_getaffinity(0))} cores"


def test_gpus_are_those_that_the_user_has_chosen(train_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    used_mib = (70000, 0, 0, 70000)
    table = "".join(f"{index}, H100, 81559, {used}, uuid-{index}\n" for index, used in enumerate(used_mib))
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text(f"#!/bin/sh\ncase $1 in --query-gpu=*) cat <<END\n{table}END\nesac\n")
    stand_in.chmod(0o755)
    chosen = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "2,3"}
    findings = preflight(
        train_config(),
        previous=None,
        earlier=(),
        environment=os.environ | chosen,
        device_count=2,
        core_count=2,
        kept=1,
        trial_timeout_s=1,
        say=lambda line: None,
    )
    assert [finding.what for finding in findings if finding.check == "GPUs"] == [
        "GPU 3 is in use: 70,000 of 81,559 MiB by a process of another container"
    ]


def test_machine_in_order_is_tried_and_found_well(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SmolLM2(load(config, TrainConfig).model)
    initialize(model, seed=5)
    save_pretrained(model, tmp_path / "weights", dtype=torch.bfloat16)
    code = main(["preflight", str(config), f"init_from={tmp_path / 'weights'}", "--timeout", "280"])
    table = capsys.readouterr().out
    assert code == 0, table
    assert f"begins in {tmp_path}/run" in table
    assert f"{tmp_path}/weights is this model by its config.json" in table
    assert "2 ranks, 4 MiB, " in table
    assert "forward, backward and step of 4 x 64 tokens in " in table
    assert table.splitlines()[-1].startswith("0 problems, 1 not checked")


def test_what_cannot_compute_here_is_told_with_the_way_out(config: Path) -> None:
    loaded = load(config, TrainConfig, ["attn_implementation=flex_attention"])
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    with pytest.raises(TrainingError, match="flex_attention has no backward on cpu; take sdpa"):
        rank_probe._step(RankJob(config=loaded, timeout_s=1), ranks, {})
