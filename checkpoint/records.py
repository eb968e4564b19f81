"""Small files that say what lies beside them: one JSON object each, versioned, replaced at once and for good; and the
folders that hold them, of which what cannot be read is never taken for what is not there.

Behind the doors `manifest.py` and `events.py`. Imports the standard library and pydantic only.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT_VERSION = 2


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another format."""


class Record(BaseModel):
    """What is written as one JSON file: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, record: type[AnyRecord], *, missing: str, spoilt: str) -> AnyRecord:
    """A record of this release's format. Raises CheckpointError: `missing`, or the path and `spoilt` with a reason."""
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["format_version"]
        if version == FORMAT_VERSION:
            return record.model_validate_json(text)
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} {spoilt.format(reason)}") from None
    raise CheckpointError(f"{path}: format version {version}, this release reads {FORMAT_VERSION}")


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file at once and for good: a temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_folder(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder under names of a pattern, sorted; nothing where there is no folder.

    Raises OSError if it cannot be listed, or is a link that leads nowhere (a disk that is not mounted): `Path.glob`
    takes both for an empty one.
    """
    try:
        return sorted(path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return []


def file_exists(path: Path) -> bool:
    """Raises OSError if that cannot be told, which `Path.is_file` takes for no."""
    return stat.S_ISREG(_mode(path))


def folder_exists(path: Path) -> bool:
    """Raises OSError if that cannot be told, which `Path.is_dir` takes for no."""
    return stat.S_ISDIR(_mode(path))


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that is in it; of a link to one, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=ignore_errors)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
