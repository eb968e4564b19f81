from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pipeline.shards.format import (
    DatasetError,
    partial_path,
    read_manifest,
    write_all_durably,
    write_durably,
    write_for_now,
    write_parts_durably,
)


@pytest.mark.parametrize("content", [b"\xff", b"", b"{", b"[]", b"{}", b'{"format_version": 1}'])
def test_a_spoilt_manifest_is_one_line_that_says_what_to_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    expected = (
        r"manifest.json is not a dataset manifest \([^\n]+\); copy it again from where the dataset came from, or make "
        rf"the dataset again: rm -r {tmp_path}, then `smollm2 pipeline run CONFIG`$"
    )
    with pytest.raises(DatasetError, match=expected):
        read_manifest(tmp_path)


def test_a_manifest_of_another_version_says_which(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(DatasetError, match=r"format version 99, wanted 1; update this program, or make the"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is not finished \(no manifest.json\)"):
        read_manifest(tmp_path)
    with pytest.raises(DatasetError, match=r"none does not exist; make it with"):
        read_manifest(tmp_path / "none")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            '{"kind": "data", "dataset": "/data/demo"}',
            "is the folder of a run, not a dataset; its dataset is /data/demo",
        ),
        ('{"dataset": null}', "folder of a run, not a dataset; wanted the output_dir of a `smollm2 pipeline run`"),
        ("[]", "is not finished (no manifest.json); make it with `smollm2 pipeline run`"),
        ("{", "is not finished (no manifest.json); make it with `smollm2 pipeline run`"),
    ],
)
def test_the_folder_of_a_run_is_not_taken_for_an_unfinished_dataset(tmp_path: Path, record: str, said: str) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(DatasetError) as error:
        read_manifest(tmp_path)
    assert str(error.value).endswith(said)


def test_no_two_writers_of_a_file_share_a_partial_one(tmp_path: Path) -> None:
    paths = {partial_path(tmp_path / "a.json") for _ in range(100)}
    assert len(paths) == 100
    assert all(path.name.startswith(".a.json.") and path.name.endswith(".partial") for path in paths)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably(tmp_path / "a.json", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_durably(tmp_path / "a.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


def test_of_several_files_all_are_written_before_the_first_is_synced_and_synced_before_the_first_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if is_folder else f"file of {len(list(tmp_path.rglob('*.partial')))}")
        fsync(descriptor)

    def spy_replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_all_durably({tmp_path / "a.json": b"a", tmp_path / "b" / "c.json": b"c"})
    assert done == ["file of 2", "file of 2", "rename", "rename", "folder", "folder"]
    assert ((tmp_path / "a.json").read_bytes(), (tmp_path / "b" / "c.json").read_bytes()) == (b"a", b"c")


def test_a_file_for_now_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", fail)
    write_for_now(tmp_path / "a.json", b"a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"a")]


def test_parts_that_cannot_be_made_leave_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_durably(tmp_path / "a.json", b"old")
    with pytest.raises(UnicodeEncodeError):
        write_parts_durably(tmp_path / "a.json", (text.encode() for text in ("new", "\udce9")))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]
