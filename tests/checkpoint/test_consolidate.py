"""Consolidation against DeepSpeed's own `zero_to_fp32`, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoint import piece_copier
from checkpoint.consolidate import (
    DTYPES,
    DamagedCheckpointError,
    as_dtype,
    consolidate_checkpoint,
    hidden_folder,
    publish_folder,
    write_weights,
)
from checkpoint.lock import claim_output
from checkpoint.manifest import CheckpointError, checkpoint_directory, read_manifest
from checkpoint.zero3_layout import MOMENTS, read_layout
from checkpoint.zero_layout import read_any_layout

VARIANTS = (
    "tied-float32", "untied-float32", "tied-bfloat16", "untied-bfloat16",
    "stage1-float32", "stage1-bfloat16", "stage2-bfloat16",
)  # fmt: skip


# slices of unequal lengths and ranks of nothing but padding show with 2 and 3 already
@pytest.mark.parametrize("world_size", [2, 3, *(pytest.param(number, marks=pytest.mark.campaign) for number in (1, 4))])
def test_weights_equal_those_of_zero_to_fp32(
    zero3_folder: Callable[[int], Path], tmp_path: Path, world_size: int
) -> None:
    for variant in VARIANTS:
        source = zero3_folder(world_size) / variant
        expected = torch.load(source / "expected.pt", weights_only=True)
        folder = tmp_path / variant
        folder.mkdir()
        write_weights(folder, read_any_layout(source / "zero").parameters, dtype="float32")
        got = load_file(folder / "model.safetensors")
        if variant.startswith("tied") or variant == "stage1-float32":
            assert torch.equal(expected.pop("lm_head.weight"), expected["embed_tokens.weight"])
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected), variant


@pytest.mark.parametrize("world_size", [2, 3])
def test_moments_equal_those_that_deepspeed_gathers(
    zero3_folder: Callable[[int], Path], tmp_path: Path, world_size: int
) -> None:
    for variant in ("tied-bfloat16", "stage1-bfloat16", "stage2-bfloat16"):
        source = zero3_folder(world_size) / variant
        expected = torch.load(source / "moments.pt", weights_only=True)
        for part in MOMENTS:
            layout = read_any_layout(source / "zero", part=part)
            folder = tmp_path / variant / part
            folder.mkdir(parents=True)
            write_weights(folder, layout.parameters, dtype="float32", stem=part)
            got = load_file(folder / f"{part}.safetensors")
            assert got.keys() == expected[part].keys()
            assert all(torch.equal(got[name], expected[part][name]) for name in got), (variant, part)
            assert any(got[name].any() for name in got)


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parameters_equal_those_of_zero_to_fp32(
    zero3_folder: Callable[[int], Path], tmp_path: Path, stage: int
) -> None:
    source = zero3_folder(3) / f"frozen-stage{stage}"
    expected = torch.load(source / "expected.pt", weights_only=True)
    assert expected["up.weight"].dtype is torch.bfloat16
    del expected["lm_head.weight"]
    for dtype in DTYPES:
        folder = tmp_path / dtype
        folder.mkdir()
        write_weights(folder, read_any_layout(source / "zero").parameters, dtype=dtype)
        got = load_file(folder / "model.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name].to(getattr(torch, dtype))) for name in expected)
    moments = read_any_layout(source / "zero", part="exp_avg").parameters
    assert moments.keys() == expected.keys() - {"up.weight", "scale"}


@pytest.fixture
def uneven(zero3_folder: Callable[[int], Path]) -> Path:
    return zero3_folder(2) / "untied-float32"


def test_bfloat16_rounds_to_nearest_even(uneven: Path, tmp_path: Path) -> None:
    write_weights(tmp_path, read_layout(uneven / "zero").parameters, dtype="bfloat16")
    got = load_file(tmp_path / "model.safetensors")
    expected = torch.load(uneven / "expected.pt", weights_only=True)
    assert all(torch.equal(got[name], expected[name].bfloat16()) for name in expected)


def test_flat_groups_that_end_inside_a_slice_give_the_same_weights(uneven: Path, tmp_path: Path) -> None:
    zero = shutil.copytree(uneven / "zero", tmp_path / "zero")
    for path in zero.glob("*_optim_states.pt"):
        states = torch.load(path, weights_only=False)
        elements = torch.cat(states["optimizer_state_dict"]["fp32_flat_groups"])
        # shift is elements 0 to 2 and the embedding 3 to 48: the first group ends in the one, the third in the other
        states["optimizer_state_dict"]["fp32_flat_groups"] = list(elements.split([2, 1, 20, len(elements) - 23]))
        torch.save(states, path)
    write_weights(tmp_path, read_layout(zero).parameters, dtype="float32")
    got = load_file(tmp_path / "model.safetensors")
    expected = torch.load(uneven / "expected.pt", weights_only=True)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_bytes_do_not_depend_on_the_buffer(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = read_layout(uneven / "zero").parameters
    for name, elements in (("large", 1 << 20), ("small", 7)):
        monkeypatch.setattr(piece_copier, "BUFFER_ELEMENTS", elements)
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name, parameters, dtype="bfloat16")
    large, small = (tmp_path / name / "model.safetensors" for name in ("large", "small"))
    assert large.read_bytes() == small.read_bytes()


def test_disk_begins_with_every_byte_before_the_end_and_none_is_lost_where_it_cannot(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    begin_writeback = piece_copier._begin_writeback

    def watched(output: int, offset: int, size: int) -> None:
        begun.append((offset, size))
        begin_writeback(output, offset, size)

    monkeypatch.setattr(piece_copier, "_begin_writeback", watched)
    monkeypatch.setattr(piece_copier, "BUFFER_ELEMENTS", 5)
    monkeypatch.setattr(piece_copier, "PIECES_TOGETHER", 3)
    parameters = read_layout(uneven / "zero").parameters
    write_weights(tmp_path, parameters, dtype="bfloat16")
    written = (tmp_path / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(written[:8], "little")
    assert [offset for offset, _ in begun] == [header_bytes, *(offset + size for offset, size in begun)][:-1]
    assert sum(begun[-1]) == len(written)
    monkeypatch.setattr(piece_copier.ctypes, "CDLL", lambda name: object())  # a system without the call
    (tmp_path / "elsewhere").mkdir()
    write_weights(tmp_path / "elsewhere", parameters, dtype="bfloat16")
    assert (tmp_path / "elsewhere/model.safetensors").read_bytes() == written


def test_shards_are_bounded_and_indexed(uneven: Path, tmp_path: Path) -> None:
    # 353 fp32 elements in tensors of at most 91: three fit into 900 bytes, never more
    written = write_weights(tmp_path, read_layout(uneven / "zero").parameters, dtype="float32", max_shard_bytes=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 353 * 4, "total_parameters": 353}
    shards = sorted(set(index["weight_map"].values()))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [path.name for path in written.files] == [*shards, "model.safetensors.index.json"]
    expected = torch.load(uneven / "expected.pt", weights_only=True)
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 900
        for name, tensor in tensors.items():
            assert index["weight_map"][name] == shard
            assert torch.equal(tensor, expected.pop(name))
    assert not expected


def test_header_says_that_pytorch_wrote_it(uneven: Path, tmp_path: Path) -> None:
    write_weights(tmp_path, read_layout(uneven / "zero").parameters, dtype="float32")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_rank_file_that_shrank_is_named(uneven: Path, tmp_path: Path) -> None:
    parameters = dict(read_layout(uneven / "zero").parameters)
    empty = tmp_path / "empty.pt"
    empty.touch()
    name, parameter = next(iter(parameters.items()))
    pieces = tuple(type(piece)(empty, 0, piece.numel) for piece in parameter.slices)
    parameters[name] = type(parameter)(name, parameter.shape, pieces)
    with pytest.raises(CheckpointError, match=r"empty\.pt ends early \(0 of 12 bytes\)"):
        write_weights(tmp_path, parameters, dtype="float32")


def test_unknown_dtype_names_those_there_are() -> None:
    with pytest.raises(CheckpointError, match="dtype 'float16', wanted one of bfloat16, float32"):
        as_dtype("float16")


def test_consolidated_run_loads_under_the_training_names(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = make_run("bfloat16")
    written = consolidate_checkpoint(run, 4, tmp_path / "weights", dtype="float32")
    tensors = load_file(tmp_path / "weights" / "model.safetensors")
    assert "layers.1.self_attn.q_proj.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert written.total_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert written.files == (tmp_path / "weights" / "model.safetensors",)


def test_existing_output_is_left_alone(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(CheckpointError, match="weights exists already; remove it or name another folder"):
        consolidate_checkpoint(make_run("float32"), 4, tmp_path / "weights", dtype="float32")


def test_second_consolidation_at_the_same_time_is_refused(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    with (
        claim_output(tmp_path / "weights", busy=""),
        pytest.raises(CheckpointError, match=r"another consolidation is at work on .*weights; wait for it"),
    ):
        consolidate_checkpoint(make_run("float32"), 4, tmp_path / "weights", dtype="float32")
    assert not (tmp_path / ".partial-weights").exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_byte_stops_consolidation_and_leaves_nothing(make_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = make_run("float32")
    record = read_manifest(checkpoint_directory(run, 4)).files[-1]
    flip_a_byte(checkpoint_directory(run, 4) / record.path)
    with pytest.raises(DamagedCheckpointError, match=rf"{record.path}: contents changed .*; take another step"):
        consolidate_checkpoint(run, 4, tmp_path / "out" / "weights", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_rank_file_lost_while_writing_leaves_no_partial_folder(uneven: Path, tmp_path: Path) -> None:
    zero = shutil.copytree(uneven / "zero", tmp_path / "zero")
    parameters = read_layout(zero).parameters
    shutil.rmtree(zero)
    with pytest.raises(FileNotFoundError), hidden_folder(tmp_path / "weights") as partial:
        write_weights(partial, parameters, dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_folder_appears_under_its_name_only_when_published(tmp_path: Path) -> None:
    final = tmp_path / "weights"
    with hidden_folder(final) as partial:
        assert not final.exists()
        (partial / "model.safetensors").touch()
        publish_folder(partial, final)
    assert [path.name for path in final.iterdir()] == ["model.safetensors"]


def test_neither_deepspeed_nor_transformers_is_loaded() -> None:
    code = "import checkpoint.export, sys; print(sorted({'deepspeed', 'transformers', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
