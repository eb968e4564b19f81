from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.shards.format import DatasetError, read_manifest


@pytest.mark.parametrize("content", [b"\xff", b"", b"{", b"[]", b"{}", b'{"format_version": 1}'])
def test_a_spoilt_manifest_is_one_line_that_says_what_to_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"manifest.json is not a dataset manifest \([^\n]+\); re-run the pipeline$"):
        read_manifest(tmp_path)


def test_a_manifest_of_another_version_says_which(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(DatasetError, match=r"format version 99, wanted 1; update or re-run the pipeline"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is not finished \(no manifest.json\)"):
        read_manifest(tmp_path)
    with pytest.raises(DatasetError, match=r"none does not exist; make it with"):
        read_manifest(tmp_path / "none")
