"""The command that starts DeepSpeed's launcher, and the environment it gets: pure functions of where to run.

    Local      deepspeed --num_gpus N …                         this machine
    Hostfile   deepspeed --hostfile HOSTS --launcher pdsh …     several, reached by ssh; mpiexec for MPICH
    Slurm      srun … deepspeed --no_ssh --node_rank …          several, inside an allocation, without ssh

All end in `--module launch.train CONFIG key=value …`, which is what one may type by hand. DeepSpeed has a Slurm
launcher of its own, but it drops `--module` and sets no master address (0.19), so under Slurm each node starts its own
`deepspeed --no_ssh` instead.

Starting and watching the child is `process.py`.
"""

from __future__ import annotations

import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster.hostfile import Host, read_hostfile
from launch.cluster.remote_environment import remote_environment
from launch.cluster.slurm import allocated_hosts, ranks_of_allocation
from launch.config import LauncherConfig

TRAIN_MODULE = "launch.train"
DEFAULT_MASTER_PORT = 29500  # DeepSpeed's own
# DeepSpeed falls back on /job/hostfile where it is not given one: a local run must not find it
NO_HOSTFILE = "/dev/null"


class LauncherError(ValueError):
    """A start that cannot work: devices, hosts or arguments that do not go together."""


@dataclass(frozen=True)
class Local:
    """Ranks on this machine; `devices` are the CUDA devices to use where CUDA_VISIBLE_DEVICES chose some."""

    ranks: int
    master_port: int
    devices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Hostfile:
    """Ranks on the hosts of the file that `settings.hostfile` names."""

    hosts: tuple[Host, ...]
    settings: LauncherConfig


@dataclass(frozen=True)
class Slurm:
    """Ranks on the nodes of a Slurm allocation; `hostfile` is written for them on a file system that all share."""

    hosts: tuple[Host, ...]
    hostfile: Path
    cpus_per_node: int | None = None
    master_port: int = DEFAULT_MASTER_PORT


Placement = Local | Hostfile | Slurm


def choose_placement(
    environment: Mapping[str, str], settings: LauncherConfig, *, run_dir: Path, device_count: int
) -> Placement:
    """Where to run: on a hostfile's hosts if one is given, else on a Slurm allocation of several nodes, else here.

    `device_count` counts this machine's CUDA devices; without one, `ranks_per_node` ranks (or one) run on the CPU.
    Raises LauncherError, HostfileError or SlurmError.
    """
    if settings.hostfile is not None:
        hosts = read_hostfile(settings.hostfile)
        check_slots(hosts, settings)
        return Hostfile(hosts, settings)
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        names = allocated_hosts(environment)
        slots = settings.ranks_per_node or ranks_of_allocation(environment)
        return Slurm(
            hosts=tuple(Host(name, slots) for name in names),
            hostfile=run_dir / "logs" / "hostfile",
            cpus_per_node=_cpus_per_node(environment),
            master_port=settings.master_port or DEFAULT_MASTER_PORT,
        )
    return _local(environment, settings, device_count=device_count)


def build_command(placement: Placement, config: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The argument vector of a training. Raises LauncherError for an argument that a remote shell would change."""
    return command_for(placement, TRAIN_MODULE, [str(config), *overrides])


def command_for(placement: Placement, module: str, arguments: Sequence[str]) -> list[str]:
    """The argument vector that runs a module on every rank. Raises LauncherError as above."""
    started = ["--module", module, *arguments]
    if isinstance(placement, Local):
        which = f"--num_gpus={placement.ranks}"
        if placement.devices is not None:
            which = f"--include=localhost:{','.join(map(str, placement.devices))}"
        return ["deepspeed", f"--hostfile={NO_HOSTFILE}", which, f"--master_port={placement.master_port}", *started]
    if isinstance(placement, Slurm):
        return [*_srun(placement), *_per_node_arguments(placement), *started]
    _check_remote_arguments(arguments)
    settings = placement.settings
    if settings.remote_launcher == "mpich":
        return [*_mpiexec(placement), sys.executable, "-u", "-m", module, *arguments]
    launcher_args = settings.launcher_args
    if settings.remote_launcher == "openmpi":
        # DeepSpeed starts the ranks bare, and they know nothing of the master (0.19)
        address, port = settings.master_addr or placement.hosts[0].name, settings.master_port or DEFAULT_MASTER_PORT
        launcher_args = f"{launcher_args} -x MASTER_ADDR={address} -x MASTER_PORT={port}".strip()
    options = {
        "hostfile": settings.hostfile,
        "launcher": settings.remote_launcher,
        "launcher_args": launcher_args or None,
        "num_gpus": settings.ranks_per_node,
        "master_addr": settings.master_addr,
        "master_port": settings.master_port,
        "ssh_port": settings.ssh_port,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    # with one host DeepSpeed would ignore its name and run on this machine
    multi = ["--force_multi"] if len(placement.hosts) == 1 else []
    return ["deepspeed", *given, *multi, *started]


def child_environment(
    environment: Mapping[str, str], placement: Placement, *, device_count: int, core_count: int, launcher_pid: int
) -> dict[str, str]:
    """What the child finds in its environment; what the user has set there stays.

    `SMOLLM2_LAUNCHER_PID` lets ranks on this machine notice that this process is gone. It means nothing on another
    machine, and so is set for local runs only.
    """
    child = dict(environment)
    # the virtual environment's own programs: DeepSpeed calls ninja, and the launcher is one of them
    child["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    child.pop("SMOLLM2_LAUNCHER_PID", None)
    if isinstance(placement, Hostfile) and placement.settings.remote_launcher == "mpich":
        # which passes its whole environment on to the ranks
        child |= remote_environment(child)
    if isinstance(placement, Local):
        child["SMOLLM2_LAUNCHER_PID"] = str(launcher_pid)
        if device_count == 0:
            # for this machine alone: of the nodes a login node knows nothing, and DeepSpeed looks there for itself
            child.setdefault("DS_ACCELERATOR", "cpu")
            # torch would take every core for every rank
            child.setdefault("OMP_NUM_THREADS", str(max(1, core_count // placement.ranks)))
    return child


def free_port() -> int:
    """A port of this machine that is free now. Another process may take it first: the run then fails and says so."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _local(environment: Mapping[str, str], settings: LauncherConfig, *, device_count: int) -> Local:
    port = settings.master_port or free_port()
    if device_count == 0:
        return Local(ranks=settings.ranks_per_node or 1, master_port=port)
    ranks = settings.ranks_per_node or device_count
    if ranks > device_count:
        raise LauncherError(
            f"launcher.ranks_per_node={ranks}, but this machine shows {device_count} CUDA devices; "
            f"use at most {device_count}, or a hostfile for several machines"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return Local(ranks=ranks, master_port=port)
    # with --num_gpus alone DeepSpeed would take the first devices, whatever the user has set
    names = [name.strip() for name in visible.split(",")]
    if not all(name.isdecimal() for name in names):
        raise LauncherError(
            f"CUDA_VISIBLE_DEVICES={visible}: DeepSpeed's launcher wants device numbers, such as 0,1; "
            "nvidia-smi -L lists them"
        )
    return Local(ranks=ranks, master_port=port, devices=tuple(int(name) for name in names[:ranks]))


def _srun(placement: Slurm) -> list[str]:
    nodes = len(placement.hosts)
    # since Slurm 22.05 srun does not take over the job's cores a task by itself
    cores = [f"--cpus-per-task={placement.cpus_per_node}"] if placement.cpus_per_node else []
    # bash, because only the task itself knows its node's number. The SIGTERM of scancel reaches every process of it:
    # the watcher and the ranks take it; DeepSpeed's outer process must outlive them, or srun kills what still saves
    task = ["bash", "-c", 'trap "" TERM; exec deepspeed --no_ssh --node_rank="$SLURM_NODEID" "$@"', "deepspeed"]
    placed = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *cores]
    return ["srun", *placed, "--kill-on-bad-exit=1", "--export=ALL", *task]


def _per_node_arguments(placement: Slurm) -> list[str]:
    return [
        f"--hostfile={placement.hostfile}",
        f"--master_addr={placement.hosts[0].name}",
        f"--master_port={placement.master_port}",
    ]


def _cpus_per_node(environment: Mapping[str, str]) -> int | None:
    text = environment.get("SLURM_CPUS_PER_TASK", "")
    return int(text) if text.isdecimal() else None


def _mpiexec(placement: Hostfile) -> list[str]:
    """MPICH's own command. DeepSpeed's launcher for it drops `--module` and the ranks' exit codes (0.19)."""
    settings = placement.settings
    master = {
        "MASTER_ADDR": settings.master_addr or placement.hosts[0].name,
        "MASTER_PORT": str(settings.master_port or DEFAULT_MASTER_PORT),
    }
    given = [word for name, value in master.items() for word in ("-genv", name, value)]
    hosts = ",".join(f"{host.name}:{host.slots}" for host in placement.hosts)
    ranks = sum(host.slots for host in placement.hosts)
    return ["mpiexec.hydra", "-n", str(ranks), "-hosts", hosts, *given, *shlex.split(settings.launcher_args)]


def check_slots(hosts: Sequence[Host], settings: LauncherConfig) -> None:
    """Raises LauncherError if `ranks_per_node` cannot be had of every host."""
    ranks = settings.ranks_per_node
    if ranks is not None and settings.remote_launcher != "pdsh":
        raise LauncherError(
            f"launcher.ranks_per_node={ranks} with launcher.remote_launcher={settings.remote_launcher}, which starts a "
            f"rank a slot; set launcher.ranks_per_node=null and write slots={ranks} into {settings.hostfile}"
        )
    for host in hosts:
        if ranks is not None and ranks > host.slots:
            raise LauncherError(
                f"launcher.ranks_per_node={ranks}, but {settings.hostfile} gives {host.name} slots={host.slots}; "
                f"use at most {min(host.slots for host in hosts)}, or more slots"
            )


def _check_remote_arguments(arguments: Sequence[str]) -> None:
    """A remote shell reads the command line again, and DeepSpeed quotes nothing but spaces."""
    for argument in arguments:
        if shlex.quote(argument) != argument or re.search(r"%[hnu]", argument):
            raise LauncherError(
                f"{argument!r} would be changed by the remote shells of a hostfile run; write it into the config file"
            )
