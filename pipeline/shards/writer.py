"""Writes the shards of one unit and one split: Arrow IPC streams that appear only when whole and safe on disk.

The names by which they appear are not safe yet: the folder is synced once, by who publishes them.

Equal documents in equal order give equal bytes. A shard is `data-UNIT-PART.arrow`; a new part begins where the next
document would take it past `shard_size_bytes`, so only a document larger than that makes a larger shard.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Buffer

from pipeline.shards.format import SCHEMA, ShardRecord, Split, partial_path, split_directory, sync_directory

# a batch is closed by the first document that takes it to so many ids
BATCH_TOKENS = 1 << 20


def shard_path(directory: Path, *, unit: int, number: int) -> Path:
    """Where a unit's shards of a split lie: its first is number 0."""
    return directory / f"data-{unit:05d}-{number:03d}.arrow"


class ShardWriter:
    """Use as a context: leaving it by an error removes what is unfinished; `finish` gives the records."""

    def __init__(
        self, dataset: Path, *, split: Split, unit: int, shard_size_bytes: int, source: str | None = None
    ) -> None:
        self._dataset = dataset
        self._directory = split_directory(dataset, split)
        self._unit = unit
        self._shard_size_bytes = shard_size_bytes
        self._source = source
        self._shard: _OpenShard | None = None
        self._records: list[ShardRecord] = []
        self._has_replaced = False

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def add(self, document_id: str, ids: NDArray[np.uint16]) -> None:
        """Append a document: ids that end in EOS. Raises OSError, with the file's name, when the disk is full."""
        document_id_utf8 = document_id.encode()
        size_bytes = ids.nbytes + len(document_id_utf8)
        if self._shard is not None and self._shard.content_bytes + size_bytes > self._shard_size_bytes:
            self._close_shard()
        if self._shard is None:
            self._shard = _OpenShard(shard_path(self._directory, unit=self._unit, number=len(self._records)))
        self._shard.add(document_id_utf8, ids, size_bytes=size_bytes)

    def finish(self) -> tuple[ShardRecord, ...]:
        """Close the last shard. The contents of all are on disk for good when this returns.

        So are their names where they took the place of other shards: a record of the unit must not outlive these.
        """
        if self._shard is not None:
            self._close_shard()
        if self._has_replaced:
            sync_directory(self._directory)
        return tuple(self._records)

    def _close_shard(self) -> None:
        assert self._shard is not None
        shard = self._shard
        self._has_replaced |= shard.path.exists()
        digest, size_bytes = shard.close()
        self._shard = None
        self._records.append(
            ShardRecord(
                path=shard.path.relative_to(self._dataset).as_posix(),
                documents=shard.documents,
                tokens=shard.tokens,
                size_bytes=size_bytes,
                digest=digest,
                source=self._source,
            )
        )


class _OpenShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.tokens = 0
        self.content_bytes = 0
        self._temporary = partial_path(path)
        self._file = DigestingFile(self._temporary)
        self._stream: Any = pa.ipc.new_stream(self._file, SCHEMA)
        self._ids: list[NDArray[np.uint16]] = []
        self._document_ids: list[bytes] = []
        self._pending_tokens = 0

    def add(self, document_id: bytes, ids: NDArray[np.uint16], *, size_bytes: int) -> None:
        self._ids.append(ids)
        self._document_ids.append(document_id)
        self._pending_tokens += len(ids)
        self.documents += 1
        self.tokens += len(ids)
        self.content_bytes += size_bytes
        if self._pending_tokens >= BATCH_TOKENS:
            self._write_batch()

    def close(self) -> tuple[str, int]:
        """Digest and size of the finished file, which is in place, but whose folder is not yet synced."""
        if self._ids:
            self._write_batch()
        self._stream.close()
        self._file.sync()
        self._file.close()
        self._temporary.replace(self.path)
        return self._file.digest, self._file.size_bytes

    def abandon(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write_batch(self) -> None:
        # from buffers: pa.array would import pandas to ask whether it is handed a series
        count = len(self._ids)
        ids = np.concatenate(self._ids) if count > 1 else self._ids[0]
        tokens = pa.Array.from_buffers(pa.uint16(), self._pending_tokens, [None, pa.py_buffer(ids)])
        input_ids = pa.Array.from_buffers(SCHEMA.types[0], count, [None, _offsets(self._ids)], children=[tokens])
        names = self._document_ids
        document_ids = pa.Array.from_buffers(pa.string(), count, [None, _offsets(names), pa.py_buffer(b"".join(names))])
        self._stream.write_batch(pa.RecordBatch.from_arrays([input_ids, document_ids], schema=SCHEMA))
        self._ids, self._document_ids, self._pending_tokens = [], [], 0


def _offsets(parts: Sequence[Sized]) -> pa.Buffer:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.py_buffer(offsets)


class DigestingFile:
    """A binary file that hashes what is written, so that no shard is read back for its digest.

    Unbuffered: Arrow writes a batch in a few large pieces, and nothing is left to be written when it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: Buffer) -> int:
        view = memoryview(content)
        self._sha256.update(view)
        written = 0
        with _naming(self._path):
            while written < view.nbytes:
                written += self._file.write(view[written:])
        _begin_writing_out(self._file.fileno(), self.size_bytes, view.nbytes)
        self.size_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Nothing to do; Arrow asks for it."""

    def sync(self) -> None:
        with _naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _begin_writing_out(descriptor: int, offset: int, size_bytes: int) -> None:
    """Let the disk work while the next batch is made: else a worker waits at the end for all that it has written.

    What Linux does at this advice for pages that are not on the disk yet: it begins to write them, and keeps them.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an OSError of write or fsync, which knows only a descriptor, the name of its file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
