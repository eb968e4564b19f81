"""Commands and environments by their text; DeepSpeed's own parser reads them back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.cluster.hostfile import Host
from launch.cluster.launcher import (
    Hostfile,
    LauncherError,
    Local,
    Slurm,
    build_command,
    child_environment,
    choose_placement,
    free_port,
)
from launch.config import LauncherConfig

CONFIG = Path("configs/train/demo.yaml")
RUN = Path("runs/demo")


@pytest.fixture
def hostfile(tmp_path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("node-a slots=8\nnode-b slots=4\n")
    return path


def choose(environment=None, *, device_count=0, **settings):
    return choose_placement(environment or {}, LauncherConfig(**settings), run_dir=RUN, device_count=device_count)


def parsed_by_deepspeed(command):
    from deepspeed.launcher.runner import parse_args

    assert command[0] == "deepspeed"
    return parse_args(command[1:])


def test_local_command_word_for_word():
    assert build_command(Local(ranks=2, master_port=29611), CONFIG, ["steps=3", "seed=1"]) == [
        "deepspeed",
        "--hostfile=/dev/null",
        "--num_gpus=2",
        "--master_port=29611",
        "--module",
        "launch.train",
        "configs/train/demo.yaml",
        "steps=3",
        "seed=1",
    ]


def test_deepspeed_reads_the_local_command_as_meant():
    parsed = parsed_by_deepspeed(build_command(Local(ranks=2, master_port=29611), CONFIG, ["steps=3"]))
    assert (parsed.num_gpus, parsed.master_port, parsed.module) == (2, 29611, True)
    assert (parsed.user_script, parsed.user_args) == ("launch.train", ["configs/train/demo.yaml", "steps=3"])


def test_local_run_ignores_a_hostfile_of_the_machine(monkeypatch, tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    parsed = parsed_by_deepspeed(build_command(Local(ranks=1, master_port=1), CONFIG))
    assert fetch_hostfile(parsed.hostfile) is None


def test_chosen_devices_are_included_by_number():
    command = build_command(Local(ranks=2, master_port=1, devices=(2, 3)), CONFIG)
    assert "--include=localhost:2,3" in command
    assert not any(word.startswith("--num_gpus") for word in command)


def test_hostfile_command_passes_every_option_on(hostfile):
    placement = choose(
        hostfile=hostfile,
        ranks_per_node=4,
        remote_launcher="pdsh",
        launcher_args="-x node-c -N",
        master_addr="10.0.0.1",
        master_port=29900,
        ssh_port=2222,
    )
    parsed = parsed_by_deepspeed(build_command(placement, CONFIG, ["steps=3"]))
    assert parsed.hostfile == str(hostfile)
    assert (parsed.launcher, parsed.launcher_args) == ("pdsh", "-x node-c -N")
    assert (parsed.num_gpus, parsed.master_addr, parsed.master_port, parsed.ssh_port) == (4, "10.0.0.1", 29900, 2222)
    assert (parsed.module, parsed.user_args) == (True, ["configs/train/demo.yaml", "steps=3"])
    assert not parsed.force_multi


def test_hostfile_command_leaves_out_what_is_not_said(hostfile):
    assert build_command(choose(hostfile=hostfile), CONFIG) == [
        "deepspeed",
        f"--hostfile={hostfile}",
        "--launcher=pdsh",
        "--module",
        "launch.train",
        "configs/train/demo.yaml",
    ]


def test_a_single_host_is_not_mistaken_for_this_machine(tmp_path):
    placement = Hostfile(hosts=(Host("node-a", 8),), settings=LauncherConfig(hostfile=tmp_path / "hostfile"))
    assert parsed_by_deepspeed(build_command(placement, CONFIG)).force_multi


@pytest.mark.parametrize("override", ["name=a b", "name=$HOME", "run_dir=a;b", "name='x'", "name=a%h"])
def test_arguments_that_remote_shells_would_change_are_one_line(hostfile, override):
    with pytest.raises(LauncherError, match=r"would be changed by the remote shells .*; write it into the config file"):
        build_command(choose(hostfile=hostfile), CONFIG, [override])
    assert build_command(choose(), CONFIG, [override])[-1] == override


def test_slurm_starts_one_deepspeed_a_node():
    placement = Slurm(hosts=(Host("gpu01", 8), Host("gpu02", 8)), hostfile=Path("h"), cpus_per_node=64)
    command = build_command(placement, CONFIG, ["name=a b"])
    assert command[:7] == [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ]
    assert command[7:9] == ["bash", "-c"]
    parsed = parsed_by_deepspeed([command[10], "--no_ssh", "--node_rank=1", *command[11:]])
    assert (parsed.hostfile, parsed.master_addr, parsed.master_port) == ("h", "gpu01", 29500)
    assert (parsed.module, parsed.user_args) == (True, ["configs/train/demo.yaml", "name=a b"])


def test_deepspeeds_outer_process_outlives_the_signal_that_its_ranks_save_on(tmp_path):
    import subprocess

    (tmp_path / "deepspeed").write_text("#!/bin/sh\nkill -TERM $$\necho outlived\n")
    (tmp_path / "deepspeed").chmod(0o755)
    placement = Slurm(hosts=(Host("a", 1), Host("b", 1)), hostfile=Path("h"))
    command = build_command(placement, CONFIG)
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_NODEID": "1"}
    done = subprocess.run(command[command.index("bash") :], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "outlived\n")


def test_slurm_shell_line_puts_in_the_nodes_number(tmp_path):
    import subprocess

    (tmp_path / "deepspeed").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "deepspeed").chmod(0o755)
    placement = Slurm(hosts=(Host("a", 1), Host("b", 1)), hostfile=Path("h"))
    command = build_command(placement, CONFIG, ["name=a b"])
    shell = command[command.index("bash") :]
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_NODEID": "1"}
    words = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:2] == ["--no_ssh", "--node_rank=1"]
    assert words[-1] == "name=a b"


def test_without_a_device_one_rank_runs_unless_more_are_asked_for():
    assert choose().ranks == 1
    assert choose(ranks_per_node=2).ranks == 2


def test_one_rank_a_device():
    placement = choose(device_count=8, master_port=29501)
    assert placement == Local(ranks=8, master_port=29501)


def test_more_ranks_than_devices_are_one_line():
    with pytest.raises(LauncherError, match=r"ranks_per_node=4, but this machine shows 2 CUDA devices; use at most 2"):
        choose(device_count=2, ranks_per_node=4)


def test_visible_devices_of_the_user_are_kept():
    placement = choose({"CUDA_VISIBLE_DEVICES": "2, 3,5"}, device_count=3, ranks_per_node=2)
    assert placement.devices == (2, 3)


def test_visible_devices_by_name_are_one_line():
    with pytest.raises(LauncherError, match="wants device numbers, such as 0,1"):
        choose({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, device_count=1)


@pytest.mark.parametrize("launcher", ["openmpi", "mpich", "impi", "mvapich"])
def test_ranks_a_node_mean_nothing_to_the_mpi_launchers(hostfile, launcher):
    with pytest.raises(
        LauncherError, match=f"ranks_per_node=4 with launcher.remote_launcher={launcher}.*write slots=4"
    ):
        choose(hostfile=hostfile, ranks_per_node=4, remote_launcher=launcher)


def test_openmpi_tells_the_ranks_the_master(hostfile):
    placement = choose(hostfile=hostfile, remote_launcher="openmpi", launcher_args="--mca btl_tcp_if_include ib0")
    parsed = parsed_by_deepspeed(build_command(placement, CONFIG))
    assert parsed.launcher == "openmpi"
    assert parsed.launcher_args == "--mca btl_tcp_if_include ib0 -x MASTER_ADDR=node-a -x MASTER_PORT=29500"


def test_mpich_is_started_by_its_own_command(hostfile):
    placement = choose(hostfile=hostfile, remote_launcher="mpich", launcher_args="-iface ib0", master_port=29900)
    assert build_command(placement, CONFIG, ["steps=3"]) == [
        *["mpiexec.hydra", "-n", "12", "-hosts", "node-a:8,node-b:4"],
        *["-genv", "MASTER_ADDR", "node-a", "-genv", "MASTER_PORT", "29900", "-iface", "ib0"],
        *[sys.executable, "-u", "-m", "launch.train", "configs/train/demo.yaml", "steps=3"],
    ]


def test_mpich_gets_what_deepspeed_env_holds(hostfile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("NCCL_SOCKET_IFNAME=ib0\n")
    placement = choose(hostfile=hostfile, remote_launcher="mpich")
    child = environment_of(placement, {"HOME": "/nowhere", "PYTHONPATH": "/mine"})
    assert (child["NCCL_SOCKET_IFNAME"], child["PYTHONPATH"]) == ("ib0", f"{tmp_path}:/mine")


def test_more_ranks_than_slots_are_one_line(hostfile):
    with pytest.raises(LauncherError, match=r"ranks_per_node=6, but .* gives node-b slots=4; use at most 4"):
        choose(hostfile=hostfile, ranks_per_node=6)


def test_an_allocation_of_several_nodes_is_used(tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho gpu01\necho gpu02\n")
    (tmp_path / "scontrol").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/bin:/usr/bin",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "gpu[01-02]",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }
    assert choose(environment, device_count=8) == Slurm(
        hosts=(Host("gpu01", 8), Host("gpu02", 8)),
        hostfile=RUN / "logs" / "hostfile",
        cpus_per_node=64,
    )


def test_an_allocation_of_one_node_is_a_local_run():
    assert isinstance(choose({"SLURM_JOB_NUM_NODES": "1"}, device_count=8), Local)


def test_a_hostfile_goes_before_an_allocation(hostfile):
    assert isinstance(choose({"SLURM_JOB_NUM_NODES": "2"}, hostfile=hostfile), Hostfile)


def environment_of(placement, given=None, *, device_count=0, core_count=8):
    return child_environment(
        given or {}, placement, device_count=device_count, core_count=core_count, launcher_pid=4242
    )


def test_cpu_run_shares_the_cores_and_names_the_accelerator():
    child = environment_of(Local(ranks=2, master_port=1))
    assert (child["DS_ACCELERATOR"], child["OMP_NUM_THREADS"]) == ("cpu", "4")
    assert environment_of(Local(ranks=16, master_port=1))["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("launcher", ["slurm", "mpich", "pdsh"])
def test_machine_without_a_gpu_does_not_keep_the_nodes_from_theirs(hostfile, launcher):
    placement = Slurm(hosts=(Host("a", 8), Host("b", 8)), hostfile=Path("h"))
    if launcher != "slurm":
        placement = choose(hostfile=hostfile, remote_launcher=launcher)
    assert "DS_ACCELERATOR" not in environment_of(placement, device_count=0)
    assert environment_of(placement, {"DS_ACCELERATOR": "cpu"})["DS_ACCELERATOR"] == "cpu"


def test_what_the_user_has_set_stays():
    child = environment_of(Local(ranks=2, master_port=1), {"OMP_NUM_THREADS": "3", "HOME": "/home/me"})
    assert (child["OMP_NUM_THREADS"], child["HOME"]) == ("3", "/home/me")


def test_devices_leave_both_to_deepspeed():
    child = environment_of(Local(ranks=2, master_port=1), device_count=2)
    assert "DS_ACCELERATOR" not in child
    assert "OMP_NUM_THREADS" not in child


def test_programs_of_the_virtual_environment_come_first():
    child = environment_of(Local(ranks=1, master_port=1), {"PATH": "/usr/bin"})
    assert child["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"


def test_launcher_is_named_to_ranks_of_this_machine_only(hostfile):
    stale = {"SMOLLM2_LAUNCHER_PID": "1"}
    assert environment_of(Local(ranks=1, master_port=1), stale)["SMOLLM2_LAUNCHER_PID"] == "4242"
    assert "SMOLLM2_LAUNCHER_PID" not in environment_of(choose(hostfile=hostfile), stale)


def test_free_port_can_be_bound():
    import socket

    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
    assert choose(master_port=None).master_port != 29500
