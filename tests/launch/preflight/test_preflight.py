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

from configs.load import dump, load
from launch.cli import main
from launch.config import TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.preflight import rank_probe
from launch.preflight.node_probe import PREFIX, encode
from launch.preflight.preflight import preflight
from launch.preflight.rank_probe import RankJob
from launch.trainer.inputs import read_inputs
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
        read_config=lambda file: pytest.fail(f"{file} is read"),
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


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[RankJob]:
    """The trials that would be made; none is."""
    jobs: list[RankJob] = []

    def try_out(job: RankJob, *parts: Any, **settings: Any) -> list[Any]:
        jobs.append(job)
        return []

    monkeypatch.setattr("launch.preflight.preflight.run_trial", try_out)
    return jobs


@pytest.fixture
def saved(config: Path, add_checkpoint: Callable[..., Path]) -> Callable[[int], None]:
    """`saved(10)`: the run of the config has that checkpoint."""

    def save(step: int) -> None:
        loaded = load(config, TrainConfig)
        add_checkpoint(loaded, read_inputs(loaded), step)
        (loaded.run_dir / "config.yaml").write_text(dump(loaded))

    return save


def test_the_trial_is_of_the_step_that_the_run_goes_on_from(
    config: Path, saved: Callable[[int], None], tried: list[RankJob], capsys: pytest.CaptureFixture[str]
) -> None:
    saved(10)
    code, findings = found(config, capsys)
    assert (code, [job.first_step for job in tried]) == (0, [10])
    assert any(finding["what"].startswith("goes on from step 10 of 20") for finding in findings)


def test_a_run_without_steps_left_is_not_tried(
    config: Path, saved: Callable[[int], None], tried: list[RankJob], capsys: pytest.CaptureFixture[str]
) -> None:
    saved(20)
    code, findings = found(config, capsys)
    assert (code, tried) == (0, [])
    assert [finding["what"] for finding in findings[-2:]] == ["the run has no steps left"] * 2


def test_another_run_in_the_folder_and_a_config_there_that_does_not_load_are_findings(
    config: Path, saved: Callable[[int], None], tried: list[RankJob], capsys: pytest.CaptureFixture[str]
) -> None:
    saved(10)
    code, findings = found(config, capsys, "seed=1", "data.sources.0.weight=2")
    told = [finding["what"] for finding in findings if finding["check"] == "run"]
    assert code == 1
    assert told == [
        "seed=1 but this run was started with 0",
        "data.sources.0.weight=2.0 but this run was started with 1.0",
    ]
    assert found(config, capsys, "data.sources.0.weight=2", "--allow-change=data")[0] == 0
    (config.parent / "run" / "config.yaml").write_text("steps: [")
    code, findings = found(config, capsys)
    assert code == 1
    assert "malformed YAML" in problems(findings)["run"]


def test_a_rank_names_the_weight_that_is_no_number(config: Path, tmp_path: Path, run_ranks: Callable[..., Any]) -> None:
    model = SmolLM2(load(config, TrainConfig).model)
    initialize(model, seed=5)
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    save_pretrained(model, tmp_path / "weights", dtype=torch.float32)
    job = RankJob(config=load(config, TrainConfig, [f"init_from={tmp_path / 'weights'}"]), timeout_s=200)
    [ended] = run_ranks(1, "-m", "launch.preflight.rank_probe", encode(job), check=False)
    assert ended.returncode == 1
    _, failure = (json.loads(line.partition(PREFIX)[2]) for line in ended.stdout.splitlines())
    assert failure["failed"] == "building the model"
    [problem] = failure["problems"]
    assert "model.norm.weight holds 1 of 32 values that are NaN or infinite; fetch it again" in problem


def test_what_cannot_compute_here_is_told_with_the_way_out(config: Path) -> None:
    loaded = load(config, TrainConfig, ["attn_implementation=flex_attention"])
    ranks = RankEnvironment(rank=0, world_size=1, local_rank=0, launcher_pid=None)
    with pytest.raises(TrainingError, match="flex_attention has no backward on cpu; take sdpa"):
        rank_probe._step(RankJob(config=loaded, timeout_s=1), ranks, {})
