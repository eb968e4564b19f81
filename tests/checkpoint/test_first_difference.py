"""After a failed proof, the first tensor that is not the checkpoint's is named; sound exports have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint.consolidate import verified_layout
from checkpoint.export import export_checkpoint, parameters_as_exported
from checkpoint.first_difference import first_difference
from checkpoint.manifest import checkpoint_directory, export_directory, read_manifest
from checkpoint.zero3_layout import ParameterLayout
from model.config import SmolLM2Config

RunMaker = Callable[[str], Path]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def export(exported_run: Path) -> Path:
    return export_directory(exported_run, 4)


@pytest.fixture
def parameters(exported_run: Path) -> dict[str, ParameterLayout]:
    return parameters_of(exported_run)


def parameters_of(run: Path) -> dict[str, ParameterLayout]:
    config = SmolLM2Config.model_validate(read_manifest(checkpoint_directory(run, 4)).model)
    return parameters_as_exported(verified_layout(run, 4), config)


def edit(export: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(export / "model.safetensors")
    change(tensors)
    save_file(tensors, export / "model.safetensors")


def test_a_sound_export_has_none(export: Path, parameters: dict[str, ParameterLayout]) -> None:
    assert first_difference(export, parameters) is None


def test_a_sound_sharded_bfloat16_export_has_none(make_run: RunMaker) -> None:
    run = make_run("bfloat16")
    made = export_checkpoint(run, 4, max_shard_bytes=60_000)
    assert first_difference(made.directory, parameters_of(run)) is None


def test_one_element_is_enough_and_the_first_in_the_networks_order_is_named(
    export: Path, parameters: dict[str, ParameterLayout]
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN].view(-1)[-1] += 0.25
        tensors["model.norm.weight"].mul_(2)

    edit(export, spoil)
    told = first_difference(export, parameters)
    count = parameters[DOWN].numel
    assert (
        told == f"{DOWN} is the first tensor that differs from the checkpoint: 1 of {count:,} elements, by up to 0.25"
    )


def test_a_nan_that_the_checkpoint_does_not_have_differs(export: Path, parameters: dict[str, ParameterLayout]) -> None:
    edit(export, lambda tensors: tensors[DOWN].view(-1)[:3].fill_(float("nan")))
    told = first_difference(export, parameters)
    assert told is not None
    assert told.endswith(f"3 of {parameters[DOWN].numel:,} elements, by up to inf")


def test_another_shape_and_a_missing_tensor_are_named(export: Path, parameters: dict[str, ParameterLayout]) -> None:
    edit(export, lambda tensors: tensors.update({DOWN: tensors[DOWN].T.contiguous()}))
    rows, columns = parameters[DOWN].shape
    told = first_difference(export, parameters)
    assert told is not None
    assert told.endswith(f"its shape is [{columns}, {rows}], the checkpoint's [{rows}, {columns}]")
    edit(export, lambda tensors: tensors.pop(DOWN))
    assert first_difference(export, parameters) == f"{DOWN} is the first tensor that is missing"


def test_a_cut_file_is_named(export: Path, parameters: dict[str, ParameterLayout]) -> None:
    path = export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    told = first_difference(export, parameters)
    assert told is not None
    assert told.startswith("model.safetensors cannot be read as safetensors")
