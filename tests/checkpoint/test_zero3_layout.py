"""The layout against real rank files, and the ways in which rank files are spoiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.manifest import CheckpointError
from checkpoint.zero3_layout import read_layout, split_shares
from checkpoint.zero3_state import read_state
from checkpoint.zero_layout import read_any_layout

RANK_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL_0 = "zero_pp_rank_0_mp_rank_00_model_states.pt"


@pytest.fixture
def zero(zero3_folder: Callable[[int], Path], tmp_path: Path) -> Path:
    """A copy of the rank files of two ranks."""
    return shutil.copytree(zero3_folder(2) / "tied-float32" / "zero", tmp_path / "zero")


@pytest.mark.parametrize(
    ("numel", "world_size", "shares"),
    [(8, 4, [2, 2, 2, 2]), (5, 4, [2, 2, 1, 0]), (1, 3, [1, 0, 0]), (91, 2, [46, 45]), (7, 1, [7])],
)
def test_shares_leave_the_padding_to_the_last_ranks(numel: int, world_size: int, shares: list[int]) -> None:
    assert split_shares(numel, world_size) == shares


def test_layout_holds_every_parameter_with_its_shape(zero: Path) -> None:
    layout = read_layout(zero)
    shapes = {name: parameter.shape for name, parameter in layout.parameters.items()}
    assert shapes == {
        "shift": (5, 1),
        "embed_tokens.weight": (13, 7),
        "up.weight": (11, 7),
        "down.weight": (7, 11),
        "scale": (1,),
        "up.bias": (11,),
    }
    assert layout.world_size == 2


class Planted:
    """A pickle that would run a command when it is read as an ordinary pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("name", [MODEL_0, RANK_1])
def test_planted_pickle_is_refused_and_not_run(zero: Path, tmp_path: Path, name: str) -> None:
    proof = tmp_path / "executed"
    torch.save({"optimizer_state_dict": Planted(proof), "param_shapes": []}, zero / name)
    with pytest.raises(CheckpointError, match=r"holds more than tensors, nothing in it was run \(.*posix\.system"):
        read_layout(zero)
    assert not proof.exists()
    torch.load(zero / name, weights_only=False)
    assert proof.exists(), "the plant is real: an ordinary load runs it"


def test_missing_model_file_is_named(zero: Path) -> None:
    (zero / MODEL_0).unlink()
    with pytest.raises(CheckpointError, match=rf"{MODEL_0} is missing; take another step"):
        read_layout(zero)


def test_missing_last_rank_shows_in_the_partition_count(zero: Path) -> None:
    (zero / RANK_1).unlink()
    with pytest.raises(CheckpointError, match="is of a run of 2 ranks, but 1 optimizer files are here"):
        read_layout(zero)


def test_missing_first_rank_is_named(zero: Path) -> None:
    (zero / RANK_1.replace("rank_1", "rank_0")).unlink()
    with pytest.raises(CheckpointError, match="the optimizer file of rank 0 is missing"):
        read_layout(zero)


def test_empty_folder_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no ZeRO-3 optimizer files"):
        read_layout(tmp_path)


def test_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, unlistable: Callable[..., AbstractContextManager[None]]
) -> None:
    with unlistable(tmp_path), pytest.raises(PermissionError):
        read_layout(tmp_path)


def test_truncated_file_is_one_line(zero: Path) -> None:
    content = (zero / RANK_1).read_bytes()
    (zero / RANK_1).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cannot be read as a rank file \(.*\); take another step") as caught:
        read_layout(zero)
    assert "\n" not in str(caught.value)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    contents = torch.load(path, weights_only=False)
    change(contents)
    torch.save(contents, path)


def test_a_frozen_parameter_that_a_rank_lacks_is_named(zero: Path) -> None:
    rewrite(zero / MODEL_0, lambda states: states["frozen_param_shapes"].update({"adapter": torch.Size([2])}))
    with pytest.raises(CheckpointError, match=rf"{MODEL_0}: adapter is not a tensor in one piece"):
        read_layout(zero)
    with pytest.raises(CheckpointError, match=r"holds frozen parameters \(adapter\); they are not resharded"):
        read_state(zero)


def test_buffers_are_refused(zero: Path) -> None:
    rewrite(zero / MODEL_0, lambda states: states["buffer_names"].append("running_mean"))
    with pytest.raises(CheckpointError, match=r"holds persistent buffers \(running_mean\)"):
        read_layout(zero)


def test_another_zero_stage_is_refused(zero: Path) -> None:
    rewrite(zero / RANK_1, lambda states: states["optimizer_state_dict"].pop("fp32_flat_groups"))
    with pytest.raises(CheckpointError, match="has no fp32_flat_groups; wanted an optimizer file of ZeRO stage 3"):
        read_layout(zero)


def test_parameter_more_than_the_groups_hold_is_named(zero: Path) -> None:
    rewrite(zero / MODEL_0, lambda states: states["param_shapes"][-1].update({"extra": torch.Size([9])}))
    with pytest.raises(CheckpointError, match="the flat groups end before parameter extra"):
        read_layout(zero)


def test_parameter_less_than_the_groups_hold_is_counted(zero: Path) -> None:
    rewrite(zero / MODEL_0, lambda states: states["param_shapes"][-1].pop("up.bias"))
    # shares of two ranks: shift 3, embedding 46, up 39, down 39, scale 1, bias 6
    with pytest.raises(CheckpointError, match="rank 0 holds 134 elements, the parameters need 128"):
        read_layout(zero)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        (MODEL_0, {"param_shapes": [3]}),
        (MODEL_0, {"param_shapes": [{"scale": 1.5}]}),
        (RANK_1, {"optimizer_state_dict": {"fp32_flat_groups": 3, "partition_count": 2}}),
    ],
)
@pytest.mark.parametrize("read", [read_any_layout, read_state])
def test_tensors_in_another_order_than_deepspeeds_are_one_line(
    zero: Path, name: str, contents: dict[str, Any], read: Callable[[Path], object]
) -> None:
    torch.save(contents, zero / name)
    with pytest.raises(
        CheckpointError, match=r"zero: the rank files are not laid out as DeepSpeed's \(.*\); take another"
    ):
        read(zero)
