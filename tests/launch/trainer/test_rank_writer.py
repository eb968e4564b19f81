"""Ranks that write one checkpoint: threads of this process stand for the ranks of several nodes; no collective."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.file_records import FileRecord, find_problems
from launch.trainer import rank_writer
from launch.trainer.rank_writer import DONE_FOLDER, RankWriter, Share

WORLD_SIZE = 3


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    (tmp_path / "zero").mkdir()
    (tmp_path / DONE_FOLDER).mkdir()
    return tmp_path


@pytest.fixture
def write(partial: Path) -> Callable[..., RankWriter]:
    """`write(rank, publish=None, size=…)`: starts a rank's writer."""

    def start(rank: int, publish: Any = None, *, size: int = 1000, save_key: str = "this") -> RankWriter:
        state = {"rank": torch.full((size,), rank)}
        share = Share(partial, save_key, rank, [(partial / "zero" / f"rank_{rank}.pt", state)], None)
        return RankWriter(share, world_size=WORLD_SIZE, publish=publish)

    return start


def ended(writer: RankWriter) -> RankWriter:
    writer.wait(60)
    return writer


def test_first_rank_publishes_when_all_have_written(partial: Path, write: Callable[..., RankWriter]) -> None:
    published: list[tuple[FileRecord, ...]] = []
    first = write(0, published.append)
    first.wait(0.3)
    assert not first.published
    others = [ended(write(rank)) for rank in (1, 2)]
    assert all(other.written and other.error is None for other in others)
    assert ended(first).published
    [files] = published
    assert [file.path for file in files] == [f"zero/rank_{rank}.pt" for rank in range(WORLD_SIZE)]
    assert find_problems(partial, files, owned=(partial / "zero").iterdir()) == []
    assert [path.name for path in partial.iterdir()] == ["zero"]


def test_a_rank_that_has_said_it_is_done_needs_the_folder_no_more(
    partial: Path, write: Callable[..., RankWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may read what the last one says, and take the folder away, before that one has the processor again."""
    replace = Path.replace

    def replace_and_take_away(path: Path, target: Path) -> Path:
        renamed = replace(path, target)
        shutil.rmtree(partial / DONE_FOLDER)
        return renamed

    monkeypatch.setattr(Path, "replace", replace_and_take_away)
    last = ended(write(1))
    assert (last.error, last.written) == (None, True)


def test_straggler_of_another_attempt_is_not_believed(write: Callable[..., RankWriter]) -> None:
    ended(write(1, save_key="before"))
    ended(write(2))
    published: list[tuple[FileRecord, ...]] = []
    first = write(0, published.append)
    first.wait(0.3)
    assert published == []
    ended(write(1))
    assert ended(first).published


def test_failed_rank_keeps_its_error_and_the_first_stops_waiting(
    write: Callable[..., RankWriter], mount_tmpfs: Callable[[str], Path]
) -> None:
    disk = mount_tmpfs("size=1m")
    share = Share(disk, "this", 1, [(disk / "rank_1.pt", torch.zeros(1_000_000))], None)
    failed = ended(RankWriter(share, world_size=WORLD_SIZE, publish=None))
    assert isinstance(failed.error, OSError)
    assert "No space left" in str(failed.error)
    assert not failed.written
    first = write(0, lambda files: pytest.fail("published without all ranks"))
    first.abandon()
    ended(first)
    assert (first.published, first.error) == (False, None)


def test_folder_that_is_not_shared_is_told(write: Callable[..., RankWriter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_writer, "VISIBLE_WITHIN_S", 0.1)
    first = write(0, lambda files: pytest.fail("published without all ranks"))
    first.note_all_written()
    time.sleep(0.2)
    assert "rank-1.json and rank 0 does not see it (run_dir must be one folder that all nodes share)" in str(
        ended(first).error
    )


def test_failed_publication_is_an_error_of_the_first_rank(write: Callable[..., RankWriter]) -> None:
    def refuse(files: tuple[FileRecord, ...]) -> None:
        raise OSError(28, "No space left on device")

    for rank in (1, 2):
        ended(write(rank))
    first = ended(write(0, refuse))
    assert not first.published
    assert isinstance(first.error, OSError)
