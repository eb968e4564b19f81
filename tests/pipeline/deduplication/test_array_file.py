from __future__ import annotations

import errno
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.deduplication.array_file import ArrayFile, ArrayFileWriter, write_arrays
from pipeline.document import PipelineError


def test_sections_come_back_as_they_were_given(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with ArrayFileWriter(path) as writer:
        writer.append(one=np.array([1, 2], np.uint64), other=np.array([], np.uint32))
        writer.append(one=np.array([], np.uint64), other=np.arange(9, dtype=np.uint32)[::2])
    file = ArrayFile(path)
    assert len(file) == 2
    assert [file.section(index)["one"].tolist() for index in (0, 1)] == [[1, 2], []]
    assert file.section(1)["other"].tolist() == [0, 2, 4, 6, 8]
    assert file.section(1)["other"].dtype == np.uint32


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ArrayFileWriter(tmp_path / "a.arrow") as writer:
            writer.append(one=np.zeros(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 500])
def test_a_damaged_file_is_named_with_the_folder_to_remove(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "deduplication" / "links" / "a.arrow"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    expected = f"^{path} is damaged; remove {tmp_path}/deduplication and run the same command to deduplicate again$"
    with pytest.raises(PipelineError, match=expected):
        ArrayFile(path)


def test_a_write_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_arrays(tmp_path / "a.arrow", one=np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_reading_maps_the_file(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.arrow", one=np.arange(1 << 20))
    tracemalloc.start()
    assert ArrayFile(tmp_path / "a.arrow").section()["one"][-1] == (1 << 20) - 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
