"""Where what stands beside the shards waits until it counts.

    DATASET/.work/next/    report, config and what `load_from_disk` reads, of a version that has no manifest yet

Shards have names of their own, but these files have those of the version before, which stays whole while an append is
at work, fails or is taken back. They move when the manifest of their version is there, by this attempt or the next. Of
a first version there is nothing to keep: they are written to their places.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from pipeline.shards.format import SPLITS, WORK_DIRECTORY, split_directory, sync_directory
from pipeline.workspace import is_finished


def where_next(dataset: Path) -> Path:
    """The folder to write to, laid out as a dataset. It need not be there."""
    return _waiting(dataset) if is_finished(dataset) else dataset


def place_of_next(dataset: Path) -> Path:
    """The same folder, made."""
    place = where_next(dataset)
    for split in SPLITS:
        split_directory(place, split).mkdir(parents=True, exist_ok=True)
    return place


def take_next(dataset: Path) -> None:
    """Move what waits for a manifest that is there now. Does nothing if nothing waits."""
    waiting = _waiting(dataset)
    if not waiting.is_dir():
        return
    for split in SPLITS:
        source, target = split_directory(waiting, split), split_directory(dataset, split)
        for path in source.glob("[!.]*") if source.is_dir() else ():
            if path.is_file():
                path.replace(target / path.name)
        with contextlib.suppress(OSError):
            target.rmdir()  # of a split without documents
        sync_directory(target if target.is_dir() else dataset)
    shutil.rmtree(waiting)


def _waiting(dataset: Path) -> Path:
    return dataset / WORK_DIRECTORY / "next"
