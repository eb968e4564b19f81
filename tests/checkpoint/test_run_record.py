from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from checkpoint import run_record
from checkpoint.manifest import CheckpointError
from checkpoint.run_record import RunRecord, code_revision, read_run, write_run


def test_record_of_an_older_release_is_a_training_run(tmp_path: Path) -> None:
    record = RunRecord(run_key="k", name="n", created_ms=1, code_revision="c", tokenizer_digest="t", versions={})
    write_run(tmp_path, record)
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace(' "kind": "training",\n', "").replace(' "dataset": null,\n', ""))
    assert "kind" not in file.read_text()
    assert read_run(tmp_path) == record


def test_code_outside_a_clone_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "run_record.py"))
    assert code_revision() == "unknown"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    author = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    assert len(code_revision()) == 40


def test_run_of_another_release_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format_version": 3, "shards": []}')
    with pytest.raises(CheckpointError, match=r"run\.json: format version 3, this release reads 2"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", [b"\xff", b"{}", b"[1]", b""])
def test_spoilt_run_record_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"^.*run\.json is not a run record \(.*\); copy it back from a copy of the folder$"
    ):
        read_run(tmp_path)


def test_folder_that_is_no_run_says_who_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder \(no run.json\); `smollm2 launch train` makes one"):
        read_run(tmp_path)
