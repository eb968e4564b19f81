"""Saves behind the training, by real ranks: the same state as a blocking save's, and a kill in the middle of one."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from checkpoint.manifest import checkpoint_directory, list_steps, read_manifest, verify_checkpoint

# 2,032,896 parameters, so that a save lasts long enough to be met
SIZE = ("model.hidden_size=256", "model.intermediate_size=1024", "launcher.ranks_per_node=1", "steps=200")
SCHEDULE = ("schedule.warmup_steps=0", "schedule.decay_steps=0")


@pytest.fixture(scope="module")
def two_ways(train_on_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """The same ten steps by two ranks: the save of step 5 blocking or behind the next steps."""
    return {
        asynchronous: train_on_ranks(
            2,
            tmp_path_factory.mktemp(f"asynchronous-{asynchronous}") / "run",
            *("steps=10", "checkpoint.every_steps=5", f"checkpoint.asynchronous={asynchronous}", *SCHEDULE),
        )
        for asynchronous in (True, False)
    }


def test_both_ways_write_the_same_files(two_ways: dict[bool, Any]) -> None:
    assert [ended.code for ended in two_ways.values()] == [0, 0], [ended.err for ended in two_ways.values()]
    for step in (5, 10):
        behind, blocking = (checkpoint_directory(two_ways[way].run, step) for way in (True, False))
        names = sorted(record.path for record in read_manifest(behind).files)
        assert names == sorted(record.path for record in read_manifest(blocking).files)
        assert len([name for name in names if name.endswith(".pt")]) == 4
        for name in names:
            if name.endswith(".pt"):
                assert_equal(
                    torch.load(behind / name, weights_only=False), torch.load(blocking / name, weights_only=False), name
                )


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
        assert ours.untyped_storage().nbytes() == theirs.untyped_storage().nbytes(), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}: {key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{where}: {index}")
    elif isinstance(ours, str | int | float | bool | None):
        assert ours == theirs, where


def test_deepspeeds_own_tool_reads_what_was_written_behind(two_ways: dict[bool, Any]) -> None:
    folder = checkpoint_directory(two_ways[True].run, 5)
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="zero")
    assert weights["embed_tokens.weight"].shape == (256, 32)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_times_are_metrics(two_ways: dict[bool, Any]) -> None:
    for ended in two_ways.values():
        stall, save = ended.metric("checkpoint/stall_time_s"), ended.metric("checkpoint/save_time_s")
        assert sorted(stall) == sorted(save) == [5, 10]
        assert all(0 < stall[step] <= save[step] for step in stall)
    assert "of which training stood still for " in two_ways[True].out


def test_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(
    start_training: Any, train_on_ranks: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    started = start_training(run, *SIZE, *SCHEDULE, "checkpoint.every_steps=2")
    started.wait_for_checkpoint(2)
    pid = started.rank_pid(0)

    def stopped_while_saving() -> bool:
        if not list((run / "checkpoints").glob(".partial-*/zero/*_optim_states.pt")):
            return False
        os.kill(pid, signal.SIGSTOP)
        partial = list((run / "checkpoints").glob(".partial-*/zero/*_optim_states.pt"))
        if not partial or list((run / "checkpoints").glob(".partial-*/manifest.json")):
            os.kill(pid, signal.SIGCONT)
            return False
        return True

    started.wait_for(stopped_while_saving, what="a save under way")
    os.kill(pid, signal.SIGKILL)
    assert started.end().code != 0
    newest = list_steps(run)[-1]
    assert verify_checkpoint(checkpoint_directory(run, newest)) == []
    [partial] = (run / "checkpoints").glob(".partial-step-*")
    assert int(re.sub(r"\D", "", partial.name)) == newest + 2

    ended = train_on_ranks(1, run, *SIZE[:3], *SCHEDULE, "checkpoint.every_steps=2", f"steps={newest + 3}")
    assert ended.code == 0, ended.err
    assert f"resuming from step-{newest:08d}" in ended.out
    assert list_steps(run)[-2:] == [newest + 2, newest + 3]
    assert list((run / "checkpoints").glob(".partial-*")) == []
    shutil.rmtree(run)
