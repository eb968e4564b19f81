"""Files of named NumPy arrays, written once and durably, read by memory map.

An Arrow IPC file; every record batch is a section of one row, every column a list. A file is whole or absent.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.deduplication.folder import damaged
from pipeline.shards.format import sync_directory

Array = NDArray[Any]


class ArrayFileWriter:
    """Use as a context: the file is there when it is left without an error. All sections hold the same names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # a name of its own: a writer that is thought dead may still write the same file
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._file = self._temporary.open("wb")
        self._writer: Any = None

    def __enter__(self) -> ArrayFileWriter:
        return self

    def append(self, **arrays: Array) -> None:
        """Add a section."""
        columns = [
            pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), pa.array(np.ascontiguousarray(array)))
            for array in arrays.values()
        ]
        batch = pa.RecordBatch.from_arrays(columns, names=list(arrays))
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._file, batch.schema)
        self._writer.write_batch(batch)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is not None:
                return
            assert self._writer is not None, "a file of no section"
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
            sync_directory(self._path.parent)
        finally:
            self._writer = None
            self._temporary.unlink(missing_ok=True)
            self._file.close()  # which may fail as well, on a full disk


class ArrayFile:
    """The sections of a finished file. Arrays are views of the file: only what is touched is read.

    Raises PipelineError for a file that is not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowInvalid, FileNotFoundError):
            raise damaged(path) from None

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    def section(self, index: int = 0) -> dict[str, Array]:
        batch = self._reader.get_batch(index)
        return {
            name: column.values.to_numpy(zero_copy_only=True)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }


def sections_of(path: Path) -> Iterator[dict[str, Array]]:
    """All sections of a file, in order."""
    file = ArrayFile(path)
    return map(file.section, range(len(file)))


def write_arrays(path: Path, **arrays: Array) -> None:
    """A file of one section."""
    with ArrayFileWriter(path) as writer:
        writer.append(**arrays)
