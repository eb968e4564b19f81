"""Slices of rank files into one file, converted on the way, by several threads.

Each piece's place in the output is known before it is read, so that threads copy pieces in any order.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint.manifest import CheckpointError
from checkpoint.stored_tensor import ELEMENT_BYTES
from checkpoint.zero3_layout import Slice

# large, as a call costs some 10 us whatever its size, but what was read is still in a cache when it is rounded
BUFFER_ELEMENTS = 256 * 1024
MAX_THREADS = 8
# what a thread is given at a time, up to 8 MB of bfloat16: to hand over one piece costs some 20 us
PIECES_TOGETHER = 16

_SYNC_FILE_RANGE_WRITE = 2  # of fcntl.h: begin, and do not wait

_TORCH_DTYPES = {"FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16, "HalfStorage": torch.float16}


def copy_slices(
    slices: Iterable[Slice], sources: Mapping[Path, int], output: int, *, first_byte: int, dtype: torch.dtype
) -> None:
    """Write the slices one behind the other into `output`, from `first_byte` on, as `dtype`.

    `sources` and `output` are descriptors of open files. Raises CheckpointError if a source ends early, OSError.
    """
    copier = _Copier(sources, output, dtype=dtype)
    with _single_threads(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as threads:
        begin = first_byte
        for end in threads.map(copier.copy, _together(_place_pieces(slices, first_byte=first_byte, dtype=dtype))):
            _begin_writeback(output, begin, end - begin)
            begin = end


def _begin_writeback(output: int, offset: int, size: int) -> None:
    """Let Linux write to the disk now what it would keep in memory until there is more, or until fsync waits for it.

    Says nothing of errors: fsync does.
    """
    if sync_file_range := getattr(ctypes.CDLL(None), "sync_file_range", None):
        sync_file_range(output, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


@contextmanager
def _single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that do all of a piece themselves: reading, rounding and writing let go of the interpreter's lock, and
    torch's own threads beside ours would wait for each other."""
    torch_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(torch_threads)


@dataclass(frozen=True)
class _Piece:
    """At most a buffer's elements, and where they go."""

    source: Slice
    offset_bytes: int


def _place_pieces(slices: Iterable[Slice], *, first_byte: int, dtype: torch.dtype) -> Iterator[_Piece]:
    offset_bytes = first_byte
    for whole in slices:
        for begin in range(0, whole.numel, BUFFER_ELEMENTS):
            numel = min(BUFFER_ELEMENTS, whole.numel - begin)
            begin_bytes = whole.offset_bytes + begin * ELEMENT_BYTES[whole.element_type]
            yield _Piece(Slice(whole.path, begin_bytes, numel, whole.element_type), offset_bytes)
            offset_bytes += numel * dtype.itemsize


def _together(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    while group := list(itertools.islice(pieces, PIECES_TOGETHER)):
        yield group


class _Buffer:
    """Elements of a dtype, and the same as bytes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.elements = torch.empty(BUFFER_ELEMENTS, dtype=dtype)
        self.bytes: memoryview = self.elements.view(torch.uint8).numpy().data


class _Copier:
    """Copies pieces into one open file; each thread has its own buffer of each dtype."""

    def __init__(self, sources: Mapping[Path, int], output: int, *, dtype: torch.dtype) -> None:
        self._sources, self._output, self._dtype = sources, output, dtype
        self._buffers = threading.local()

    def copy(self, pieces: list[_Piece]) -> int:
        """Pieces that follow each other; returns where the last ends in the output."""
        return [self._copy(piece) for piece in pieces][-1]

    def _copy(self, piece: _Piece) -> int:
        numel, dtype = piece.source.numel, _TORCH_DTYPES[piece.source.element_type]
        target = source = self._buffer(dtype)
        self._read(piece.source, source.bytes[: numel * dtype.itemsize])
        if dtype is not self._dtype:
            target = self._buffer(self._dtype)
            target.elements[:numel].copy_(source.elements[:numel])
        view, written = target.bytes[: numel * self._dtype.itemsize], 0
        while written < len(view):
            written += os.pwrite(self._output, view[written:], piece.offset_bytes + written)
        return piece.offset_bytes + written

    def _buffer(self, dtype: torch.dtype) -> _Buffer:
        own: dict[torch.dtype, _Buffer] = self._buffers.__dict__.setdefault("by_dtype", {})
        if dtype not in own:
            own[dtype] = _Buffer(dtype)
        return own[dtype]

    def _read(self, piece: Slice, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            count = os.preadv(self._sources[piece.path], [view[filled:]], piece.offset_bytes + filled)
            if not count:
                raise CheckpointError(f"{piece.path} ends early ({filled:,} of {len(view):,} bytes); take another step")
            filled += count
