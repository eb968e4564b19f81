"""The checkpoint contract: when a checkpoint exists, and when it is whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from checkpoint.manifest import (
    CheckpointError,
    CheckpointManifest,
    checkpoint_directory,
    describe_files,
    export_directory,
    list_export_steps,
    list_steps,
    newest_verified,
    partial_directory,
    publish_checkpoint,
    read_manifest,
    recover_interrupted_replacement,
    verify_checkpoint,
)

Unlistable = Callable[..., AbstractContextManager[None]]


def save(run: Path, step: int, content: bytes = b"weights") -> Path:
    partial = partial_directory(run, step)
    (partial / "zero").mkdir(parents=True)
    (partial / "zero" / "rank_0.pt").write_bytes(content)
    manifest = CheckpointManifest(
        run_key="k",
        step=step,
        tokens_consumed=0,
        samples_consumed=0,
        world_size=1,
        zero_stage=3,
        dtype="float32",
        config_digest="c",
        dataset_digests={},
        tokenizer_digest="t",
        model={},
        files=tuple(describe_files(partial, [partial / "zero" / "rank_0.pt"])),
    )
    return publish_checkpoint(run, manifest)


def test_published_checkpoint_is_whole_and_latest(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 100)
    assert checkpoint == tmp_path / "checkpoints" / "step-00000100"
    assert verify_checkpoint(checkpoint) == []
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000100\n"


def test_file_record_has_path_size_and_digest(tmp_path: Path) -> None:
    (record,) = read_manifest(save(tmp_path, 1)).files
    # printf weights | xxh128sum, and the file's of those 16 bytes
    assert record.range_digests == ("bdbda1eb6e05adc4800d98e5524fefbc",)
    assert record.digest == "xxh3-128:5a7c9bc1247c4c3ca686bf1984573f62"
    assert (record.path, record.size_bytes) == ("zero/rank_0.pt", 7)


def test_what_is_being_written_does_not_exist_yet(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (partial_directory(tmp_path, 2) / "zero").mkdir(parents=True)
    checkpoint_directory(tmp_path, 3).mkdir()
    (tmp_path / "checkpoints" / "step-old").mkdir()
    (tmp_path / "checkpoints" / "step-old" / "manifest.json").touch()
    assert list_steps(tmp_path) == [1]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 1, b"other weights")
    assert (checkpoint / "zero" / "rank_0.pt").read_bytes() == b"other weights"
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["latest", "step-00000001"]


def test_newest_that_is_whole_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "zero" / "rank_0.pt").write_bytes(b"weightz")
    (save(tmp_path, 3) / "manifest.json").write_text("{")
    step, passed_over = newest_verified(tmp_path)
    assert step == 1
    assert [problem.path for problem in passed_over] == [
        "step-00000003/manifest.json",
        "step-00000002/zero/rank_0.pt",
    ]


def test_unreadable_manifest_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    bad, read_text = save(tmp_path, 2) / "manifest.json", Path.read_text

    def fail(path: Path, encoding: str) -> str:
        if path == bad:
            raise OSError(5, "Input/output error", str(path))
        return read_text(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", fail)
    step, problems = newest_verified(tmp_path)
    assert (step, [str(problem) for problem in problems]) == (
        1,
        ["step-00000002/manifest.json: cannot be read: Input/output error"],
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("read", [list_steps, newest_verified, recover_interrupted_replacement])
def test_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, unlistable: Unlistable, read: Callable[[Path], object], number: int
) -> None:
    save(tmp_path, 1)
    with unlistable(tmp_path / "checkpoints", number), pytest.raises(OSError, match="checkpoints") as caught:
        read(tmp_path)
    assert caught.value.errno == number


def test_link_to_a_disk_that_is_not_mounted_is_not_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    with pytest.raises(FileNotFoundError):
        newest_verified(tmp_path)
    (tmp_path / "disk").mkdir()
    assert newest_verified(tmp_path) == (None, [])


def test_manifest_that_cannot_be_looked_at_is_not_a_missing_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest_file = save(tmp_path, 2) / "manifest.json"
    manifest_file.unlink()
    manifest_file.symlink_to(manifest_file)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        list_steps(tmp_path)


def test_checkpoint_whose_files_cannot_be_listed_is_neither_whole_nor_damaged(
    tmp_path: Path, unlistable: Unlistable
) -> None:
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 2)
    with unlistable(checkpoint / "zero"):
        with pytest.raises(PermissionError):
            verify_checkpoint(checkpoint)
        step, problems = newest_verified(tmp_path)
    assert (step, [str(problem) for problem in problems]) == (
        1,
        ["step-00000002/manifest.json: cannot be read: Permission denied"],
    )


@pytest.mark.parametrize("target_is_there", [True, False])
def test_saving_a_step_again_replaces_a_link_and_leaves_what_it_leads_to(tmp_path: Path, target_is_there: bool) -> None:
    checkpoint = save(tmp_path, 1)
    bulk = checkpoint.rename(tmp_path / "bulk")
    checkpoint.symlink_to(bulk)
    if not target_is_there:
        bulk.rename(tmp_path / "unmounted")
    for content in (b"other weights", b"still others"):
        save(tmp_path, 1, content)
    assert not checkpoint.is_symlink()
    assert (checkpoint / "zero" / "rank_0.pt").read_bytes() == b"still others"
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["latest", "step-00000001"]
    kept = bulk if target_is_there else tmp_path / "unmounted"
    assert (kept / "zero" / "rank_0.pt").read_bytes() == b"weights"


def test_run_with_nothing_whole_has_no_newest(tmp_path: Path) -> None:
    assert newest_verified(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "path", ["../weights", "/etc/passwd", "zero/../../weights", "zero\\\\..\\\\weights", "zero/\\u0000"]
)
def test_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    manifest_file = save(tmp_path, 1) / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace("zero/rank_0.pt", path))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint; do not trust it"):
        read_manifest(manifest_file.parent)


def test_format_of_another_release_is_named(tmp_path: Path) -> None:
    manifest_file = save(tmp_path, 1) / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"format_version":2', '"format_version":3'))
    with pytest.raises(CheckpointError, match="format version 3, this release reads 2"):
        read_manifest(manifest_file.parent)


def test_manifest_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    manifest_file = save(tmp_path, 1) / "manifest.json"
    manifest_file.write_text(manifest_file.read_text().replace('"world_size":1', '"world_size":2'))
    with pytest.raises(CheckpointError, match=r"manifest\.json was changed after it was written .*; take another step"):
        read_manifest(manifest_file.parent)


def test_flipped_byte_in_a_manifest_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest_file = save(tmp_path, 2) / "manifest.json"
    manifest_file.write_bytes(manifest_file.read_bytes().replace(b'"run_key":"k"', b'"run_key":"\xff"'))
    step, (problem,) = newest_verified(tmp_path)
    assert step == 1
    assert "is not a checkpoint manifest ('utf-8' codec can't decode byte 0xff" in problem.reason


def test_manifest_of_another_step_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(checkpoint_directory(tmp_path, 3))
    step, (problem,) = newest_verified(tmp_path)
    assert step == 1
    assert "step-00000003/manifest.json is that of step-00000002; take another step" in problem.reason


@pytest.fixture
def crashed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose trainer died between the two renames that replace step 1."""
    save(tmp_path, 1)

    class Killed(BaseException):
        pass

    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name.startswith(".partial-"):
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(Killed):
        save(tmp_path, 1, b"other weights")
    monkeypatch.undo()
    assert list_steps(tmp_path) == []
    return tmp_path


def test_crash_while_replacing_gives_the_step_its_new_checkpoint(crashed_run: Path) -> None:
    recover_interrupted_replacement(crashed_run)
    assert newest_verified(crashed_run) == (1, [])
    assert (checkpoint_directory(crashed_run, 1) / "zero" / "rank_0.pt").read_bytes() == b"other weights"


def test_crash_while_replacing_gives_the_old_checkpoint_back_if_the_new_is_lost(crashed_run: Path) -> None:
    shutil.rmtree(partial_directory(crashed_run, 1))
    recover_interrupted_replacement(crashed_run)
    assert newest_verified(crashed_run) == (1, [])
    assert (checkpoint_directory(crashed_run, 1) / "zero" / "rank_0.pt").read_bytes() == b"weights"


def test_nothing_is_recovered_where_the_replacement_was_done(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 1, b"old"), tmp_path / "checkpoints" / ".replaced-step-00000001")
    save(tmp_path, 2)
    recover_interrupted_replacement(tmp_path)
    assert list_steps(tmp_path) == [1, 2]
    assert (tmp_path / "checkpoints" / ".replaced-step-00000001").is_dir()


def test_published_exports_are_listed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("step-00000010", "step-00000002", ".quarantine-step-00000020", ".partial-step-00000030"):
        (tmp_path / "exports" / name).mkdir(parents=True)
        (tmp_path / "exports" / name / "config.json").touch()
    (export_directory(tmp_path, 40)).mkdir()
    assert list_export_steps(tmp_path) == [2, 10]
