"""Where the main thread is, by real stacks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from launch.trainer.stacks import main_thread_place, place_of, write_stacks


def frame_inside(call: Callable[[Callable[[], None]], None]) -> FrameType:
    """The innermost frame at the moment that `call` calls its argument."""
    seen: list[FrameType] = []
    call(lambda: seen.append(sys._getframe()))
    return seen[0]


def test_line_of_this_project_is_named_where_nothing_waits() -> None:
    collective, where = place_of(frame_inside(lambda look: look()))
    assert collective is None
    assert where.startswith("tests/launch/trainer/test_stacks.py:")


def test_collective_is_named_by_torchs_own_name() -> None:
    # what c10d's functions look like from within: their file and name are what counts
    path = str(Path(torch.__file__).parent / "distributed" / "distributed_c10d.py")
    names: dict[str, object] = {}
    exec(compile("def all_gather_object(look):\n    inner(look)\ndef inner(look):\n    look()\n", path, "exec"), names)
    frame = frame_inside(names["all_gather_object"]).f_back  # type: ignore[arg-type]
    collective, where = place_of(frame)
    assert collective == "all_gather_object"
    assert where.startswith("tests/launch/trainer/test_stacks.py:")


def test_stacks_are_written_with_every_thread(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    file = write_stacks(tmp_path, 3)
    assert file == tmp_path / "logs" / "stacks-rank-3.txt"
    assert "test_stacks_are_written_with_every_thread" in file.read_text()


def test_main_thread_is_this_one() -> None:
    assert main_thread_place()[1].startswith("launch/trainer/stacks.py:")
