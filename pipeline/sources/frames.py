"""Where a compressed file can be cut: between the frames of Zstandard (RFC 8878) and the blocks of bgzip.

Frames are found without decompressing: by the table of the seekable format (zstd's contrib/seekable_format), by the
sizes that pzstd writes before its frames, else by following the headers of the blocks in a frame, three bytes each.
`bgzip` writes the size of each of its gzip members into its header (SAM specification, §4.1). Other gzip members, bzip2
and xz are not cut.

A store is asked for the end of a file alone, where the table is, in two requests: what only headers tell would be a
request a frame. A disk is read for some bytes of every block, up to the first frame that is longer than 16 pieces and
than MAX_FRAME_BYTES; that and all behind it is one piece. So a file of one frame, as `zstd` writes it, costs at most
some thousand such reads.

What is found is not trusted: a piece that does not end where a frame does is an error when it is read
(`compression.py`), and what this file does not understand is left to the reader, as a part of one piece.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.sources.piece import Piece, byte_range
from pipeline.sources.storage import StoredFile, is_url, open_file
from pipeline.sources.suffix import EXPANSION, suffix_of

# bytes from an offset on, fewer at the end of the file
_Read = Callable[[int, int], bytes]

# in a longer frame, of more than 16 pieces, no end is looked for: that costs a read for every 128 KiB of text
MAX_FRAME_BYTES = 170 << 20

_ZSTD_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50  # and the 15 that follow
_SEEK_TABLE_MAGIC = 0x8F92EAB1
_SEEK_TABLE_FOOTER = struct.Struct("<IBI")
_RLE_BLOCK, _RESERVED_BLOCK = 1, 3

_GZIP_WITH_EXTRA = b"\x1f\x8b\x08\x04"


def frame_ranges(file: StoredFile, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Consecutive frames of about `unit_size_bytes` of text together, more if a frame alone has more.

    Raises SourceError if the file has changed or cannot be read.
    """
    range_size_bytes = max(1, unit_size_bytes // EXPANSION)
    start = stop = 0
    if file.size_bytes > range_size_bytes and _may_be_cut(file.path):
        with _reading(file) as read:
            for end in _frame_ends(file, read, max_frame_bytes=max(MAX_FRAME_BYTES, 16 * range_size_bytes)):
                if start < stop and end - start > range_size_bytes:
                    yield byte_range(file, start, stop)
                    start = stop
                stop = end
    if start < stop < file.size_bytes and file.size_bytes - start > range_size_bytes:
        yield byte_range(file, start, stop)
        start = stop
    yield byte_range(file, start, file.size_bytes)


def is_bgzip(head: bytes) -> bool:
    """Whether the first 18 bytes of a gzip member are the header of a block of bgzip."""
    return _bgzip_block_size(head) is not None


def _may_be_cut(path: str) -> bool:
    """By its name: a store of thousands of files that are not cut is not asked about each."""
    return suffix_of(path) == ".zst" or (suffix_of(path) == ".gz" and not is_url(path))


def _frame_ends(file: StoredFile, read: _Read, *, max_frame_bytes: int) -> Iterator[int]:
    if suffix_of(file.path) == ".gz":
        return _ends_of_bgzip_blocks(read, file.size_bytes)
    ends = _ends_by_table(read, file.size_bytes)
    if ends is not None:
        return iter(ends)
    if is_url(file.path):
        return iter(())
    return _ends_by_headers(read, file.size_bytes, max_frame_bytes=max_frame_bytes)


@contextmanager
def _reading(file: StoredFile) -> Iterator[_Read]:
    with open_file(file.path, version=file.version) as stream:
        if is_url(file.path):

            def read(offset: int, count: int) -> bytes:
                stream.seek(offset)
                return stream.read(count)
        else:
            descriptor = stream.fileno()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

            def read(offset: int, count: int) -> bytes:
                return os.pread(descriptor, count, offset)

        yield read


def _ends_by_table(read: _Read, size_bytes: int) -> list[int] | None:
    """None if the file has no table of the seekable format, or one that is not of all of it."""
    if size_bytes < 8 + _SEEK_TABLE_FOOTER.size:
        return None
    footer = read(size_bytes - _SEEK_TABLE_FOOTER.size, _SEEK_TABLE_FOOTER.size)
    if len(footer) < _SEEK_TABLE_FOOTER.size:  # it has been cut since it was listed, as its reader will say
        return None
    frames, descriptor, magic = _SEEK_TABLE_FOOTER.unpack(footer)
    entry_bytes = 12 if descriptor & 0x80 else 8
    table_bytes = 8 + frames * entry_bytes + _SEEK_TABLE_FOOTER.size
    if magic != _SEEK_TABLE_MAGIC or table_bytes > size_bytes:
        return None
    table = read(size_bytes - table_bytes, table_bytes)
    if len(table) < table_bytes or struct.unpack_from("<II", table) != (_SKIPPABLE_MAGIC | 0xE, table_bytes - 8):
        return None
    ends, end = [], 0
    for frame in range(frames):
        at = 8 + frame * entry_bytes
        end += int.from_bytes(table[at : at + 4], "little")
        ends.append(end)
    return ends if end == size_bytes - table_bytes else None


def _ends_by_headers(read: _Read, size_bytes: int, *, max_frame_bytes: int) -> Iterator[int]:
    offset = 0
    while offset < size_bytes:
        head = read(offset, 18)
        magic = int.from_bytes(head[:4], "little")
        if magic & ~0xF == _SKIPPABLE_MAGIC:
            length, size_of_next = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
            offset += 8 + length
            if length != 4 or not _begins_frame(read, offset + size_of_next, size_bytes):
                continue
            offset += size_of_next  # as pzstd says
        elif magic == _ZSTD_MAGIC and len(head) > 4:
            end = _end_of_frame(read, offset, head[4], max_frame_bytes=max_frame_bytes)
            if end is None or end > size_bytes:
                return
            offset = end
        else:
            return
        yield offset


def _begins_frame(read: _Read, offset: int, size_bytes: int) -> bool:
    if offset == size_bytes:
        return True
    magic = int.from_bytes(read(offset, 4), "little")
    return magic == _ZSTD_MAGIC or magic & ~0xF == _SKIPPABLE_MAGIC


def _end_of_frame(read: _Read, start: int, descriptor: int, *, max_frame_bytes: int) -> int | None:
    """None if it is longer than `max_frame_bytes`, cut off or damaged."""
    is_single_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    window_bytes = 1 - is_single_segment
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    content_size_bytes = (is_single_segment, 2, 4, 8)[descriptor >> 6]
    position = start + 5 + window_bytes + dictionary_bytes + content_size_bytes
    is_last = 0
    while not is_last:
        header = read(position, 3)
        value = int.from_bytes(header, "little")
        is_last, kind, length = value & 1, value >> 1 & 3, value >> 3
        position += 3 + (1 if kind == _RLE_BLOCK else length)
        if len(header) < 3 or kind == _RESERVED_BLOCK or position - start > max_frame_bytes:
            return None
    return position + 4 * has_checksum


def _ends_of_bgzip_blocks(read: _Read, size_bytes: int) -> Iterator[int]:
    offset = 0
    while offset < size_bytes:
        block_bytes = _bgzip_block_size(read(offset, 18))
        if block_bytes is None or offset + block_bytes > size_bytes:
            return
        offset += block_bytes
        yield offset


def _bgzip_block_size(head: bytes) -> int | None:
    """Of the extra field `BC`, which bgzip writes alone."""
    if len(head) < 18 or head[:4] != _GZIP_WITH_EXTRA or head[10:16] != b"\x06\0BC\x02\0":
        return None
    return int.from_bytes(head[16:18], "little") + 1
