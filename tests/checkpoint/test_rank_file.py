"""Rank files that are damaged or made to do harm; what whole ones hold is compared in test_reshard.py."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.manifest import CheckpointError
from checkpoint.rank_file import read_rank_file, tensor_bytes, write_rank_file
from checkpoint.stored_tensor import StoredTensor

NAME = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def with_pickle(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """The same file with another pickle."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return target


def test_any_damage_is_one_line_or_no_difference(zero3_folder: Callable[[int], Path], tmp_path: Path) -> None:
    source = zero3_folder(2) / "tied-float32" / "zero" / NAME
    numbers, refusals = random.Random(0), []
    for _ in range(300):

        def damage(content: bytes) -> bytes:
            damaged = bytearray(content)
            for _ in range(numbers.randint(1, 4)):
                damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
            return bytes(damaged)

        path = with_pickle(source, tmp_path / NAME, damage)
        try:
            assert isinstance(read_rank_file(path), dict)
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in refusal for refusal in refusals)


def test_damage_of_the_container_is_one_line(zero3_folder: Callable[[int], Path], tmp_path: Path) -> None:
    content = (zero3_folder(2) / "tied-float32" / "zero" / NAME).read_bytes()
    path = tmp_path / NAME
    for kept in (0, 1, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match="cannot be read as a rank file"):
            read_rank_file(path)


def test_a_name_that_is_reached_through_another_is_refused(tmp_path: Path) -> None:
    # protocol 4 lets a name have dots; none is followed
    harm = pickle.PROTO + b"\x04\x8c\x0bcollections\x8c\x1cOrderedDict.__init__.__doc__\x93."
    path = tmp_path / "rank.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rank/version", "3\n")
        archive.writestr("rank/data.pkl", harm)
    with pytest.raises(CheckpointError, match=r"nothing in it was run \(GLOBAL collections\.OrderedDict\.__init__"):
        read_rank_file(path)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"), [(3, (2,), (1,)), (0, (2, 3), (3, 1)), (0, (2,), (4,)), (-1, (1,), (1,))]
)
def test_a_tensor_beyond_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    torch.save({"tensor": torch.arange(4.0)}, tmp_path / "whole.pt")
    tensor = read_rank_file(tmp_path / "whole.pt")["tensor"]
    assert tensor_bytes(tensor) == torch.arange(4.0).numpy().tobytes()
    write_rank_file(tmp_path / "spoilt.pt", {"tensor": StoredTensor(tensor.storage, offset, shape, stride)})
    with pytest.raises(CheckpointError, match=r"cannot be read as a rank file \(a tensor"):
        read_rank_file(tmp_path / "spoilt.pt")


def test_views_and_shared_storages_keep_what_they_share(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    contents: dict[str, Any] = {
        "base": base, "view": base[1:, ::2], "number": torch.tensor(7), "empty": torch.empty(0),
        "plain": OrderedDict(a=1, b=(2.5, None, True, 1 << 62), c=torch.Size([2, 3]), d=torch.float32),
    }  # fmt: skip
    torch.save(contents, tmp_path / "first.pt")
    write_rank_file(tmp_path / "second.pt", read_rank_file(tmp_path / "first.pt"))
    again = torch.load(tmp_path / "second.pt", weights_only=True)
    assert again["plain"] == contents["plain"]
    assert type(again["plain"]["c"]) is torch.Size
    for name in ("base", "view", "number", "empty"):
        assert torch.equal(again[name], contents[name])
        assert again[name].dtype == contents[name].dtype
    assert again["view"].data_ptr() == again["base"].data_ptr() + 8


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    torch.save({"tensor": torch.zeros(1000)}, tmp_path / "first.pt")
    contents = read_rank_file(tmp_path / "first.pt")
    (tmp_path / "first.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"first.pt ends early \(0 of 4,000 bytes\); take another step"):
        write_rank_file(tmp_path / "second.pt", contents)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save([1], tmp_path / "list.pt")
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    (tmp_path / "plain.pt").write_bytes(buffer.getvalue())
    for name, words in (("old", "cannot be read"), ("plain", "cannot be read"), ("list", "holds list, wanted")):
        with pytest.raises(CheckpointError, match=words):
            read_rank_file(tmp_path / f"{name}.pt")


@pytest.mark.parametrize(
    "target",
    [
        b"cdeepspeed.runtime.zero.config\nZeroStageEnum\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nfloat32\n",
        b"ccollections\nOrderedDict\n",
    ],
)
def test_a_pickle_cannot_change_what_the_next_one_is_read_with(tmp_path: Path, target: bytes) -> None:
    path = tmp_path / "rank.pt"
    # (None, {"name": "other"}) as a state sets attributes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rank/version", "3\n")
        archive.writestr("rank/data.pkl", target + b"(N(X\x04\0\0\0nameX\x05\0\0\0otherdtb.")
    with pytest.raises(CheckpointError, match=r"cannot be read as a rank file \(a state for "):
        read_rank_file(path)


def test_a_compressed_file_which_could_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rank/version", "3\n")
        archive.writestr("rank/data.pkl", pickle.dumps({"zeros": "0" * 10_000_000}))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"compressed, which torch\.save never does"):
        read_rank_file(path)
