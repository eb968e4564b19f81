"""Which process of the run this is, read once from the environment that DeepSpeed's launcher sets. No torch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from launch.config import TrainingError

RANKS_TOLD = 8


@dataclass(frozen=True)
class RankEnvironment:
    """`rank` of `world_size` processes; `local_rank` counts within the node, which has `local_size`, from 0."""

    rank: int
    world_size: int
    local_rank: int
    launcher_pid: int | None
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Rank 0 speaks, logs and publishes."""
        return self.rank == 0


# what the ranks of OpenMPI and of MPICH are told in place of what DeepSpeed's launcher tells
_MPI_NAMES = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "LOCAL_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}


def adopt_mpi_names(environment: MutableMapping[str, str]) -> None:
    """Set RANK and its like for a rank that mpirun started without DeepSpeed's launcher; before anything reads them."""
    for name, others in _MPI_NAMES.items():
        for other in others:
            if other in environment:
                environment.setdefault(name, environment[other])


def read_environment(environment: Mapping[str, str]) -> RankEnvironment:
    """Raises TrainingError where no launcher has set RANK, WORLD_SIZE and LOCAL_RANK."""
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except KeyError as missing:
        raise TrainingError(
            f"launch.train runs under DeepSpeed's launcher ({missing.args[0]} is not set); use `smollm2 launch train "
            "CONFIG` or `deepspeed --num_gpus 2 --module launch.train CONFIG`"
        ) from None
    launcher_pid = environment.get("SMOLLM2_LAUNCHER_PID")
    # where a launcher does not say it, the ranks up to this one are known
    local_size = int(environment.get("LOCAL_SIZE", local_rank + 1))
    return RankEnvironment(rank, world_size, local_rank, int(launcher_pid) if launcher_pid else None, local_size)


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3` or `ranks 0, 2`; of many the first ones and how many more."""
    told = ", ".join(map(str, ranks[:RANKS_TOLD]))
    more = f" and {len(ranks) - RANKS_TOLD} more" if len(ranks) > RANKS_TOLD else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {told}{more}"
