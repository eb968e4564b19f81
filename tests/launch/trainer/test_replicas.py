"""Copies that should be equal: by hand, and between two real processes of which one's weights were changed by a bit."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.trainer.guards import ReplicaError
from launch.trainer.ranks import RankEnvironment
from launch.trainer.replicas import _PIECE, Replicated, _checksum, check_replicas, difference

SAME = Replicated(weights=11, learning_rate=5, engine_steps=100, batch_number=100)


def test_equal_copies_differ_in_nothing() -> None:
    assert difference([SAME, SAME, SAME]) is None


def test_ranks_that_differ_from_most_are_named() -> None:
    other = Replicated(weights=12, learning_rate=5, engine_steps=100, batch_number=100)
    assert difference([SAME, other, SAME]) == "weights of rank 1 differs from that of the other ranks"
    assert difference([SAME, SAME, SAME, other, other]) == "weights of ranks 3, 4 differs from that of the other ranks"


@pytest.mark.parametrize("field", ["learning_rate", "engine_steps", "batch_number"])
def test_counts_are_compared_too(field: str) -> None:
    other = Replicated(**{**vars(SAME), field: 7})
    assert difference([SAME, SAME, other]) == f"{field} of rank 2 differs from that of the other ranks"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_checksum_sees_one_bit_and_an_exchange_of_places(dtype: torch.dtype) -> None:
    weights = torch.arange(1, 9, dtype=dtype)
    changed = weights.clone()
    changed.view(torch.int16)[3] ^= 1
    assert len({_checksum([weights]), _checksum([changed]), _checksum([weights.flip(0)])}) == 3
    assert _checksum([weights[:4], weights[4:]]) != _checksum([weights[4:], weights[:4]])
    assert _checksum([]) == 0


def test_checksum_sees_an_exchange_of_whole_pieces_and_holds_one_at_a_time() -> None:
    weights = torch.arange(4 * _PIECE, dtype=torch.float32)
    turned = torch.cat(weights.split(_PIECE)[::-1])
    assert _checksum([weights]) != _checksum([turned])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _checksum([weights])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= _PIECE * 8  # an int64 copy of one piece


def rank(number: int, store: Path, results: Queue[str]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    weights = torch.ones(100)
    if number == 1:
        weights.view(torch.int32)[50] ^= 1
    deepspeed = SimpleNamespace(
        zero_optimization_stage=lambda: 3,
        optimizer=SimpleNamespace(persistent_parameters=[weights]),
        global_steps=7,
    )
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    engine: Any = SimpleNamespace(deepspeed=deepspeed, optimizer=optimizer, device=torch.device("cpu"))
    ranks = RankEnvironment(rank=number, world_size=2, local_rank=number, launcher_pid=None)
    try:
        check_replicas(engine, step=7, ranks=ranks, batch_number=7)
        results.put("equal")
    except ReplicaError as error:
        results.put(str(error))


def test_both_ranks_end_with_the_same_word_where_one_bit_differs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: Queue[str] = context.Queue()
    processes = [context.Process(target=rank, args=(number, tmp_path / "store", results)) for number in (0, 1)]
    for process in processes:
        process.start()
    words = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    difference_told = "step 7: weights differs between the ranks, and of no value there is a majority"
    assert words == [f"{difference_told}; the run was stopped before it could be saved"] * 2
