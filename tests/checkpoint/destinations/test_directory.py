"""Publishing to a folder: whole or absent, never replaced, resumed, checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.lock import LockBusyError, exclusive_lock
from checkpoint.manifest import CheckpointError
from checkpoint.publication import PublicationError, read_published
from checkpoint.publish import publish_export
from checkpoint.run_record import read_run, write_run

AddExport = Callable[..., Path]


@pytest.fixture
def run(new_run: Callable[..., Path], add_export: AddExport) -> Path:
    """A run named `small` with a proven export of step 4."""
    made = new_run("small")
    add_export(made, 4)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_what_was_proven(run: Path, tmp_path: Path) -> None:
    done = publish_export(run, 4, str(tmp_path / "models"))
    arrived = tmp_path / "models" / "small" / "step-00000004"
    assert contents(arrived) == contents(run / "exports" / "step-00000004")
    assert (done.location, done.sent, done.found, done.latest) == (str(arrived), 4, 0, 4)
    assert (tmp_path / "models" / "small" / "latest").read_text() == "step-00000004\n"
    assert read_published(run) == {str(tmp_path / "models"): {4}}


def test_again_sends_nothing(run: Path, tmp_path: Path) -> None:
    publish_export(run, 4, str(tmp_path / "models"))
    again = publish_export(run, 4, str(tmp_path / "models"))
    assert (again.sent, again.found) == (0, 4)


def test_latest_never_moves_back(run: Path, tmp_path: Path, add_export: AddExport) -> None:
    publish_export(run, 4, str(tmp_path / "models"))
    add_export(run, 2)
    assert publish_export(run, 2, str(tmp_path / "models")).latest == 4
    assert (tmp_path / "models" / "small" / "latest").read_text() == "step-00000004\n"


@pytest.mark.parametrize("files", [1, 3])
def test_a_killed_publication_shows_nothing_and_goes_on(run: Path, tmp_path: Path, files: int) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom checkpoint.publish import publish_export\n"
        f"left = {files + 1}\n"  # one is that of run-key
        "def audit(event, arguments):\n"
        "    global left\n"
        "    if event == 'os.rename' and 'models' in str(arguments[0]):\n"
        "        left -= 1\n"
        "        if left < 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(audit)\n"
        f"publish_export(Path({str(run)!r}), 4, {str(tmp_path / 'models')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    left = sorted(path.name for path in (tmp_path / "models" / "small").iterdir())
    assert left == [".partial-step-00000004", ".publication.lock", "run-key"]
    done = publish_export(run, 4, str(tmp_path / "models"))
    assert (done.sent, done.found) == (4 - files, files)
    assert contents(tmp_path / "models" / "small" / "step-00000004") == contents(run / "exports" / "step-00000004")


def test_another_content_in_its_place_is_not_replaced(run: Path, tmp_path: Path) -> None:
    publish_export(run, 4, str(tmp_path / "models"))
    theirs = tmp_path / "models" / "small" / "step-00000004" / "config.json"
    theirs.write_text("theirs")
    with pytest.raises(
        PublicationError, match=r"config.json is sha256:.*…, the proven one is .*; remove it, or publish"
    ):
        publish_export(run, 4, str(tmp_path / "models"))
    assert theirs.read_text() == "theirs"


def test_an_export_that_changed_since_its_proof_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "exports" / "step-00000004" / "config.json").write_text("{}")
    with pytest.raises(
        PublicationError, match=r"is not what was proven \(config.json\); run `smollm2 checkpoint prove"
    ):
        publish_export(run, 4, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_file_that_the_proof_does_not_know_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "exports" / "step-00000004" / "extra.bin").write_text("x")
    with pytest.raises(PublicationError, match=r"is not what was proven \(extra.bin\)"):
        publish_export(run, 4, str(tmp_path / "models"))


def test_an_unproven_export_is_refused(run: Path, tmp_path: Path) -> None:
    folder = run / "exports" / "step-00000004"
    proof = (folder / "proof.json").read_text()
    (folder / "proof.json").write_text(
        proof.replace('"passed"', '"failed"').replace('"reasons":[]', '"reasons":["loss"]')
    )
    folder.rename(folder.with_name(".quarantine-step-00000004"))
    with pytest.raises(PublicationError, match=r"step-00000004 of .* failed its proof \(loss\); publish another step"):
        publish_export(run, 4, str(tmp_path / "models"))


def test_an_unknown_step_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PublicationError, match=r"step-00000009 of .* is not exported; run `smollm2 checkpoint export"):
        publish_export(run, 9, str(tmp_path / "models"))


def test_a_full_disk_leaves_nothing_visible(
    run: Path, mount_tmpfs: Callable[[str], Path], add_export: AddExport
) -> None:
    add_export(run, 5, weights=b"x" * 2_000_000)
    disk = mount_tmpfs("size=1m")
    with pytest.raises(OSError, match="No space left"):
        publish_export(run, 5, str(disk))
    assert not (disk / "small" / "step-00000005").exists()
    assert not (disk / "small" / "latest").exists()


@pytest.mark.parametrize("url", ["gs://bucket", "ftp://host/x"])
def test_another_kind_of_destination_is_refused(run: Path, url: str) -> None:
    with pytest.raises(
        CheckpointError, match="no such kind of destination; wanted /a/folder, s3://BUCKET/PREFIX or hf://"
    ):
        publish_export(run, 4, url)


@pytest.mark.parametrize("name", ["../elsewhere", "/proc/elsewhere", "a/../../elsewhere", ".", "a\0b"])
def test_a_name_that_leads_out_of_the_destination_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    write_run(run, read_run(run).model_copy(update={"name": name}))
    with pytest.raises(
        PublicationError, match=r"the run's name .* leads out of the destination; change it in .*run.json"
    ):
        publish_export(run, 4, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_name_may_have_folders(run: Path, tmp_path: Path) -> None:
    write_run(run, read_run(run).model_copy(update={"name": "team/small"}))
    publish_export(run, 4, str(tmp_path / "models"))
    assert (tmp_path / "models" / "team" / "small" / "latest").is_file()


def test_two_publications_of_a_run_are_one_too_many(run: Path, tmp_path: Path) -> None:
    with (
        exclusive_lock(run / "service" / ".publication.lock", busy=""),
        pytest.raises(LockBusyError, match=r"another publication of .* is under way; wait for its end"),
    ):
        publish_export(run, 4, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_another_run_of_the_same_name_is_refused(run: Path, tmp_path: Path, other_run: Path) -> None:
    models = tmp_path / "models" / "small"
    publish_export(run, 4, str(tmp_path / "models"))
    refused = r"models/small is of another run of this name \(run-key is 'f+', wanted 'e+'\); change `name`"
    with pytest.raises(PublicationError, match=refused):
        publish_export(other_run, 9, str(tmp_path / "models"))
    assert (models / "latest").read_text() == "step-00000004\n"
    assert not (models / "step-00000009").exists()
    write_run(other_run, read_run(other_run).model_copy(update={"name": "renamed"}))
    publish_export(other_run, 9, str(tmp_path / "models"))
    assert (tmp_path / "models" / "renamed" / "latest").read_text() == "step-00000009\n"


def test_a_copy_of_the_run_folder_goes_on_where_the_run_was(run: Path, tmp_path: Path, add_export: AddExport) -> None:
    publish_export(run, 4, str(tmp_path / "models"))
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    add_export(moved, 8)
    assert publish_export(moved, 8, str(tmp_path / "models")).latest == 8


def test_two_copies_of_a_run_folder_take_turns(run: Path, tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "models" / "small" / ".publication.lock", busy=""),
        pytest.raises(LockBusyError, match=r"another publication to .*models/small is under way; wait for its end"),
    ):
        publish_export(run, 4, str(tmp_path / "models"))
    assert not (tmp_path / "models" / "small" / "run-key").exists()


def test_a_latest_that_names_nothing_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "models" / "small" / "latest").write_text("v2\n")
    with pytest.raises(PublicationError, match=r"small/latest is 'v2', wanted step-NUMBER; remove it, or publish"):
        publish_export(run, 4, str(tmp_path / "models"))
    assert (tmp_path / "models" / "small" / "latest").read_text() == "v2\n"
