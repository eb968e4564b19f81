from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.document import PipelineError
from pipeline.filters.listing import read_list


def test_comments_and_empty_lines_are_no_entries(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# top\n\n  one two \nc# # a language\n\tlast")
    assert read_list(tmp_path / "list.txt") == ["one two", "c#", "last"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "list.txt: cannot be read: No such file or directory; wanted a text file, one entry a line"),
        (b"a\n\xff", r"list.txt: not UTF-8 text \(byte 2\); wanted one entry a line"),
        (b"# nothing\n", "list.txt: holds no entry; wanted one a line, or no filter that reads it"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(PipelineError, match=message + "$"):
        read_list(tmp_path / "list.txt")


def test_a_byte_order_mark_is_no_part_of_the_first_entry(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert read_list(tmp_path / "list.txt") == ["one", "two"]
