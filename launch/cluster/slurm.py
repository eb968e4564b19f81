"""What a Slurm allocation says of itself: its nodes and how many ranks each may run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping


class SlurmError(ValueError):
    """An allocation that does not say what is needed, or no Slurm commands to ask."""


def allocated_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the allocated nodes in Slurm's order, in which SLURM_NODEID counts them from 0."""
    nodes = environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise SlurmError("SLURM_JOB_NODELIST is not set; start this inside an allocation, by sbatch or salloc")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise SlurmError("scontrol is not in PATH; it is needed to list the nodes of the allocation") from None
    except subprocess.CalledProcessError as error:
        raise SlurmError(f"`{' '.join(command)}` failed: {' '.join(error.stderr.split())}") from None
    return tuple(done.stdout.split())


def ranks_of_allocation(environment: Mapping[str, str]) -> int:
    """One rank a GPU of a node, as the allocation counts them."""
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if not gpus.isdecimal() or int(gpus) < 1:
        raise SlurmError(
            "the allocation does not say its GPUs a node (SLURM_GPUS_ON_NODE is not set); "
            "ask for some with --gpus-per-node, or set launcher.ranks_per_node"
        )
    return int(gpus)
