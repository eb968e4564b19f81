"""Small files that say what lies beside them: one JSON object each, versioned, replaced at once and for good.

Behind the doors `manifest.py` and `events.py`. Imports the standard library and pydantic only.
"""

from __future__ import annotations

import json
import os
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
