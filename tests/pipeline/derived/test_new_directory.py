from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.derived.new_directory import new_directory
from pipeline.document import PipelineError


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "out") as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "out") as directory:
            (directory / "file").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "file").write_text("x")
    (left / "link").symlink_to(tmp_path)
    with new_directory(tmp_path / "out") as directory:
        assert [path.name for path in directory.iterdir()] == [".lock"]
    assert tmp_path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_whatever_is_there_is_refused(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    {
        "file": output.touch,
        "folder": output.mkdir,
        "dangling link": lambda: output.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with (
        pytest.raises(PipelineError, match=r"out is there already; remove it, or choose another output$"),
        new_directory(output),
    ):
        pass


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def race() -> None:
        with new_directory(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("x")

    with pytest.raises(OSError, match="not empty"):
        race()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_a_full_disk_is_named_by_the_output(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "out")
