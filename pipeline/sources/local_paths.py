"""The local paths that match a glob: those of `glob.glob(recursive=True)`, which passes over folders it cannot read.

Below `**` every folder is walked once, by the first of its paths. Links to folders are followed, and one that leads
back to a parent not round in circles; of files, none is lost by it.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator


def matching_paths(pattern: str) -> Iterator[str]:
    """Files and folders, in no order, some twice where there are several `**`; as in a shell, names that begin with a
    dot match only a pattern that does.

    Raises OSError, with its `filename`, for a folder that cannot be read.
    """
    if glob.has_magic(pattern):
        yield from _matches(pattern, with_files=True)
    elif _exists(pattern):
        yield pattern


def is_absence(error: OSError) -> bool:
    """Whether there is no such file or folder (any more): it vanished, or a link leads nowhere."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _matches(pattern: str, *, with_files: bool) -> Iterator[str]:
    """Of a pattern with magic characters. `with_files`: those below a `**` at its end too."""
    parent, name = os.path.split(pattern)
    for folder in _matches(parent, with_files=False) if glob.has_magic(parent) else [parent]:
        if name == "**":
            yield from _below(folder, with_files=with_files)
        elif not glob.has_magic(name):
            path = _joined(folder, name)
            if _exists(path):
                yield path
        else:
            for entry in _entries(folder):
                if fnmatch.fnmatch(entry.name, name) and (name.startswith(".") or not entry.name.startswith(".")):
                    yield _joined(folder, entry.name)


def _below(top: str, *, with_files: bool) -> Iterator[str]:
    """The folder itself and all that is not hidden below it."""
    walked: set[tuple[int, int]] = set()
    waiting = [_joined(top, "")]
    while waiting:
        folder = waiting.pop()
        identity = _folder_identity(folder)
        if identity is None or identity in walked:
            continue
        walked.add(identity)
        yield folder
        subfolders = []
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                subfolders.append(_joined(folder, entry.name))
            elif with_files:
                yield _joined(folder, entry.name)
        # in the order of the sorted paths below them: a folder is walked by the first of its paths
        waiting += sorted(subfolders, key=lambda path: f"{path}/", reverse=True)


def _joined(folder: str, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118  (a Path would be spelled otherwise)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or os.curdir) as entries:
            return list(entries)
    except OSError as error:
        if is_absence(error):
            return []
        raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_absence(error):
            return False
        raise


def _exists(path: str) -> bool:
    return _status(path, follow_links=False) is not None


def _folder_identity(path: str) -> tuple[int, int] | None:
    status = _status(path, follow_links=True)
    return (status.st_dev, status.st_ino) if status is not None and stat.S_ISDIR(status.st_mode) else None


def _status(path: str, *, follow_links: bool) -> os.stat_result | None:
    try:
        return os.stat(path or os.curdir, follow_symlinks=follow_links)  # noqa: PTH116  (as given)
    except OSError as error:
        if is_absence(error):
            return None
        raise
