"""The layout of stages 1 and 2 against real rank files of two ranks, and the ways in which they are spoiled.

That the weights and moments are DeepSpeed's own, over one to four ranks: `test_consolidate.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.manifest import CheckpointError
from checkpoint.zero12_layout import MODEL_FILE
from checkpoint.zero_layout import read_any_layout

RANK_1 = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.fixture(params=["stage1-bfloat16", "stage2-bfloat16"])
def zero(request: pytest.FixtureRequest, zero3_folder: Callable[[int], Path], tmp_path: Path) -> Path:
    return shutil.copytree(zero3_folder(2) / request.param / "zero", tmp_path / "zero")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    contents = torch.load(path, weights_only=False)
    change(contents)
    torch.save(contents, path)


def test_parameter_may_lie_in_two_ranks_files(zero: Path) -> None:
    layout = read_any_layout(zero)
    assert layout.world_size == 2
    cut_in_two = [one.name for one in layout.parameters.values() if len({piece.path for piece in one.slices}) == 2]
    assert cut_in_two
    assert all(sum(piece.numel for piece in one.slices) == one.numel for one in layout.parameters.values())


class Planted:
    """A pickle that would run a command when it is read as an ordinary pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("name", [MODEL_FILE, RANK_1])
def test_planted_pickle_is_refused_and_not_run(zero: Path, tmp_path: Path, name: str) -> None:
    torch.save({"optimizer_state_dict": Planted(tmp_path / "executed")}, zero / name)
    with pytest.raises(CheckpointError, match="holds more than tensors, nothing in it was run"):
        read_any_layout(zero)
    assert not (tmp_path / "executed").exists()


def test_missing_rank_shows_in_the_partition_count(zero: Path) -> None:
    (zero / RANK_1).unlink()
    with pytest.raises(CheckpointError, match=r"is of a run of .*2.* ranks, but 1 optimizer files are here"):
        read_any_layout(zero)


def test_file_of_stage_3_among_them_is_refused(zero: Path) -> None:
    rewrite(zero / RANK_1, lambda states: states["optimizer_state_dict"].pop("single_partition_of_fp32_groups"))
    with pytest.raises(CheckpointError, match="wanted an optimizer file of ZeRO stage 1 or 2"):
        read_any_layout(zero)


def test_parameter_more_than_the_groups_hold_is_named(zero: Path) -> None:
    def add(states: dict[str, Any]) -> None:
        states["param_shapes"][0]["extra"] = torch.Size([99])

    rewrite(zero / MODEL_FILE, add)
    for rank in (0, 1):
        rewrite(
            zero / RANK_1.replace("rank_1", f"rank_{rank}", 1),
            lambda states: states["optimizer_state_dict"].pop("param_alignment_paddings", None),
        )
    with pytest.raises(CheckpointError, match="the flat groups end before parameter extra"):
        read_any_layout(zero)


def test_parameter_less_than_the_groups_hold_is_counted(zero: Path) -> None:
    rewrite(zero / MODEL_FILE, lambda states: states["param_shapes"][0].popitem())
    for rank in (0, 1):
        rewrite(
            zero / RANK_1.replace("rank_1", f"rank_{rank}", 1),
            lambda states: states["optimizer_state_dict"].pop("param_alignment_paddings", None),
        )
    with pytest.raises(CheckpointError, match=r"the ranks hold [\d,]+ elements, the parameters need [\d,]+"):
        read_any_layout(zero)


def test_moments_of_another_optimizer_are_refused(zero: Path) -> None:
    def forget(states: dict[str, Any]) -> None:
        for state in states["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
            del state["exp_avg_sq"]

    rewrite(zero / RANK_1, forget)
    with pytest.raises(CheckpointError, match="holds no exp_avg_sq of every group; moments are read of AdamW"):
        read_any_layout(zero, part="exp_avg_sq")
