"""Which rank a process is, by what each launcher tells it."""

from __future__ import annotations

import pytest

from launch.config import TrainingError
from launch.trainer.ranks import RankEnvironment, adopt_mpi_names, name_ranks, read_environment


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"},
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    ],
    ids=["deepspeed", "openmpi", "mpich"],
)
def test_every_launcher_names_the_same_rank(told: dict[str, str]) -> None:
    environment = dict(told)
    adopt_mpi_names(environment)
    assert read_environment(environment) == RankEnvironment(3, 4, 1, None, local_size=2)
    assert environment["LOCAL_SIZE"] == "2"


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([3], "rank 3"),
        ([0, 2], "ranks 0, 2"),
        (list(range(8)), "ranks 0, 1, 2, 3, 4, 5, 6, 7"),
        (list(range(9)), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
    ],
)
def test_of_many_ranks_the_first_are_named(ranks: list[int], named: str) -> None:
    assert name_ranks(ranks) == named


def test_deepspeeds_own_names_go_first() -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "PMI_RANK": "3"}
    adopt_mpi_names(environment)
    assert read_environment(environment).rank == 0


def test_without_a_launcher_it_is_said_what_to_use() -> None:
    with pytest.raises(TrainingError, match=r"RANK is not set.*use `smollm2 launch train"):
        read_environment({})


def test_under_another_launcher_the_ranks_up_to_this_one_are_known() -> None:
    assert read_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}).local_size == 2
