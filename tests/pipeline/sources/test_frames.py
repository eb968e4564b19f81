"""Compressed files cut between their frames: nothing is lost, doubled or named otherwise than in a file read whole."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from pipeline.document import Document, Record, SourceError
from pipeline.source_config import JsonlConfig
from pipeline.sources import frames, jsonl, storage
from pipeline.sources.compression import open_piece
from pipeline.sources.frames import frame_ranges
from pipeline.sources.piece import Piece
from pipeline.sources.storage import stored_file
from pipeline.sources.suffix import EXPANSION

WHOLE = 1 << 40
Parts = Sequence[bytes]


def skippable(content: bytes, *, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 | number, len(content)) + content


def zstd(parts: Parts, *, write_checksum: bool = False, write_content_size: bool = True) -> list[bytes]:
    compressor = zstandard.ZstdCompressor(write_checksum=write_checksum, write_content_size=write_content_size)
    return [compressor.compress(part) for part in parts]


def streamed(part: bytes) -> bytes:
    """A frame without its content's size, of several blocks."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    middle = len(part) // 2
    some = compressor.compress(part[:middle]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return some + compressor.compress(part[middle:]) + compressor.flush()


def with_table(parts: Parts, *, checksums: bool = False, wrong_by: int = 0) -> bytes:
    """The seekable format. `wrong_by` bytes are moved from the second frame to the first."""
    stored = zstd(parts)
    sizes = [len(frame) for frame in stored]
    sizes[0] += wrong_by
    sizes[1] -= wrong_by
    entries = b"".join(
        struct.pack("<II", size, len(part)) + (bytes(4) if checksums else b"")
        for size, part in zip(sizes, parts, strict=True)
    )
    footer = struct.pack("<IBI", len(parts), 0x80 if checksums else 0, 0x8F92EAB1)
    return b"".join(stored) + skippable(entries + footer, number=0xE)


def as_pzstd(parts: Parts) -> bytes:
    return b"".join(skippable(len(frame).to_bytes(4, "little")) + frame for frame in map(streamed, parts))


def bgzip(parts: Parts) -> bytes:
    return b"".join(map(bgzip_block, [*parts, b""]))


def bgzip_block(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    deflated = compressor.compress(content) + compressor.flush()
    header = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H2sHH", 6, b"BC", 2, len(deflated) + 25)
    return header + deflated + struct.pack("<II", zlib.crc32(content), len(content))


FORMATS: dict[str, Callable[[Parts], bytes]] = {
    "a.jsonl.zst": lambda parts: b"".join(zstd(parts)),
    "checksum.jsonl.zst": lambda parts: b"".join(zstd(parts, write_checksum=True, write_content_size=False)),
    "streamed.jsonl.zst": lambda parts: b"".join(map(streamed, parts)),
    "skippable.jsonl.zst": lambda parts: b"".join(skippable(b"note", number=3) + frame for frame in zstd(parts)),
    "pzstd.jsonl.zst": as_pzstd,
    "table.jsonl.zst": with_table,
    "table_with_checksums.jsonl.zst": lambda parts: with_table(parts, checksums=True),
    "a.jsonl.gz": bgzip,
}
every_format = pytest.mark.parametrize("name", FORMATS)


def lines(count: int, *, seed: int) -> bytes:
    """Some long, some repetitive, some that do not compress."""
    draw = random.Random(seed)
    texts = [draw.choice(("", "é" * 40, "x" * 700, draw.randbytes(60).hex())) + str(n) for n in range(count)]
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def cut_anywhere(content: bytes, *, seed: int) -> list[bytes]:
    """In the middle of lines and characters, at line ends and behind them, and so that some parts are empty."""
    draw = random.Random(seed)
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    places = draw.sample(range(len(content)), 12) + draw.sample(ends, 8)
    places += [draw.choice(ends) - 1, places[0], places[-1], 0, len(content)]
    return [content[start:stop] for start, stop in itertools.pairwise(sorted(places))]


def config_of(path: Path | str) -> JsonlConfig:
    return JsonlConfig(name="web", type="jsonl", files=(str(path),))


def pieces_of(path: Path | str, *, unit_size_bytes: int) -> list[Piece]:
    return list(jsonl.find_pieces(config_of(path), unit_size_bytes=unit_size_bytes))


def read(path: Path | str, *, unit_size_bytes: int) -> list[Record]:
    config = config_of(path)
    return [
        record
        for piece in jsonl.find_pieces(config, unit_size_bytes=unit_size_bytes)
        for record in jsonl.read_piece(config, piece)
    ]


@every_format
@pytest.mark.parametrize("seed", range(5))
def test_cut_pieces_have_every_line_once_and_name_it_as_the_whole_does(tmp_path: Path, name: str, seed: int) -> None:
    content = lines(60, seed=seed)
    path = tmp_path / name
    path.write_bytes(FORMATS[name](cut_anywhere(content, seed=seed)))
    whole = read(path, unit_size_bytes=WHOLE)
    assert [record.text for record in whole if isinstance(record, Document)] == [
        json.loads(line)["text"] for line in content.splitlines()
    ]
    sizes = {unit: len(pieces_of(path, unit_size_bytes=unit)) for unit in (1, 1500, 4000, WHOLE)}
    for unit_size_bytes in sizes:
        assert read(path, unit_size_bytes=unit_size_bytes) == whole
    assert sizes[1500] > sizes[4000] > sizes[WHOLE] == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_member_of_gzip_behind_blocks_of_bgzip_is_read_to_its_end(tmp_path: Path, seed: int) -> None:
    content = lines(120, seed=seed)
    parts = cut_anywhere(content, seed=seed)
    path = tmp_path / "a.jsonl.gz"
    # the line that the blocks end in goes on in the member, which is no block and so is not cut
    path.write_bytes(bgzip(parts[:12]) + gzip.compress(b"".join(parts[12:])))
    whole = read(path, unit_size_bytes=WHOLE)
    assert len(whole) == 120
    assert len(pieces_of(path, unit_size_bytes=1)) > 5
    assert read(path, unit_size_bytes=1) == whole


def test_a_member_behind_blocks_of_bgzip_is_inflated_a_part_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(bgzip([lines(2, seed=1)]) + gzip.compress(b" " * 100_000_000))  # 97 KB
    tracemalloc.start()
    with open_piece(Piece(str(path), stored_file(path).version, 0, path.stat().st_size, path.stat().st_size)) as file:
        before = len(lines(2, seed=1))
        assert len(file.read(before + 1)) == before + 1
        _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_a_frame_of_zstandard_that_holds_far_more_than_it_takes_is_inflated_a_part_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = zstandard.ZstdCompressor(level=1).compressobj()
    path.write_bytes(b"".join(whole.compress(bytes(1 << 20)) for _ in range(400)) + whole.flush())  # about 20 KB
    tracemalloc.start()
    with open_piece(Piece(str(path), stored_file(path).version, 0, path.stat().st_size, path.stat().st_size)) as file:
        assert len(file.read(1)) == 1
        _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200 << 20


def test_a_file_that_is_cut_while_its_table_is_read_is_left_to_its_reader(tmp_path: Path) -> None:
    content = with_table([lines(20, seed=1), lines(20, seed=2)])

    def read_of(stored: bytes) -> Callable[[int, int], bytes]:
        return lambda offset, count: stored[offset : offset + count]

    assert frames._ends_by_table(read_of(content), len(content)) is not None
    assert frames._ends_by_table(read_of(content[:-3]), len(content)) is None
    # the footer was still there, the table is not
    table = iter([content[-9:], b""])
    assert frames._ends_by_table(lambda offset, count: next(table), len(content)) is None


class Counting(bytes):
    """Bytes that count how many of them were copied by slices."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if isinstance(part, bytes):
            Counting.copied += len(part)
            return Counting(part)
        return part


def test_a_table_is_read_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frame_count = 2000
    content = with_table([b"x"] * frame_count)
    monkeypatch.setattr(Counting, "copied", 0)

    def read(offset: int, count: int) -> bytes:
        return Counting(content[offset : offset + count])

    ends = frames._ends_by_table(read, len(content))
    assert ends is not None
    assert len(ends) == frame_count
    assert Counting.copied <= 4 * frame_count


def test_one_line_over_many_frames_is_of_the_first(tmp_path: Path) -> None:
    line = json.dumps({"text": "y" * 3000}).encode()
    path = tmp_path / "a.jsonl.zst"
    parts = [line[start : start + 100] for start in range(0, len(line), 100)]
    path.write_bytes(b"".join(zstd(parts)))
    assert len(pieces_of(path, unit_size_bytes=300)) > 5
    (record,) = read(path, unit_size_bytes=300)
    assert isinstance(record, Document)
    assert record.text == "y" * 3000


def test_the_place_of_a_record_is_where_it_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    first, second = zstd([b'{"text": "one"}\n{"te', b'xt": "two"}\n{"text": "three"}\n'])
    path.write_bytes(first + second)
    records = read(path, unit_size_bytes=1)
    places = [record.document_id.partition("@")[2] for record in records if isinstance(record, Document)]
    assert places == ["0", "16", f"{len(first)}+12"]
    frame = zstandard.ZstdDecompressor().decompress(path.read_bytes()[len(first) :])
    assert frame[12:] == b'{"text": "three"}\n'


@every_format
def test_pieces_are_of_the_size_that_is_asked_for(tmp_path: Path, name: str) -> None:
    content = lines(4000, seed=1)
    path = tmp_path / name
    path.write_bytes(FORMATS[name]([content[start : start + 5000] for start in range(0, len(content), 5000)]))
    pieces = pieces_of(path, unit_size_bytes=60_000)
    assert (pieces[0].start, pieces[-1].stop) == (0, path.stat().st_size)
    assert all(before.stop == after.start for before, after in itertools.pairwise(pieces))
    assert all(piece.size_bytes == EXPANSION * (piece.stop - piece.start) <= 60_000 for piece in pieces)
    assert sum(piece.size_bytes for piece in pieces) / len(pieces) > 30_000


@pytest.mark.skipif(shutil.which("pzstd") is None, reason="pzstd is not installed")
def test_what_pzstd_writes_is_cut(tmp_path: Path) -> None:
    content = lines(100_000, seed=2)
    (tmp_path / "a.jsonl").write_bytes(content)
    subprocess.run(["pzstd", "-q", "-p", "2", "a.jsonl"], cwd=tmp_path, check=True)
    path = tmp_path / "a.jsonl.zst"
    assert len(pieces_of(path, unit_size_bytes=1 << 20)) > 2
    assert read(path, unit_size_bytes=1 << 20) == read(path, unit_size_bytes=WHOLE)


@pytest.mark.parametrize("wrong_by", [1, 20, -20])
def test_a_table_that_is_wrong_is_an_error_when_it_is_read(tmp_path: Path, wrong_by: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(with_table([lines(9, seed=seed) for seed in range(3)], wrong_by=wrong_by))
    with pytest.raises(SourceError, match=r"a\.jsonl\.zst is damaged or truncated \(.+\); fetch it again$"):
        read(path, unit_size_bytes=1)


def test_a_table_that_leaves_out_a_frame_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    parts = [lines(9, seed=seed) for seed in range(4)]
    stored = zstd(parts)
    sizes = [len(stored[0]) + len(stored[1]), len(stored[2]), len(stored[3])]
    table = b"".join(struct.pack("<II", size, 0) for size in sizes) + struct.pack("<IBI", 3, 0, 0x8F92EAB1)
    path.write_bytes(b"".join(stored) + skippable(table, number=0xE))
    assert len(pieces_of(path, unit_size_bytes=1)) == 4  # the table is the last
    assert read(path, unit_size_bytes=1) == read(path, unit_size_bytes=WHOLE)


def test_a_table_that_points_into_a_frame_reads_nothing_of_its_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    first, inside, last = zstd([lines(9, seed=1), b'{"text": "no record"}\n', lines(9, seed=2)])
    sizes = [len(first) + 8, len(inside), len(last)]
    table = b"".join(struct.pack("<II", size, 0) for size in sizes) + struct.pack("<IBI", 3, 0, 0x8F92EAB1)
    path.write_bytes(first + skippable(inside) + last + skippable(table, number=0xE))
    with pytest.raises(SourceError, match=rf"\(no frame begins at byte {sizes[0]}\); fetch it again$"):
        read(path, unit_size_bytes=1)
    assert len(read(path, unit_size_bytes=WHOLE)) == 18


@every_format
@pytest.mark.parametrize("cut_bytes", [1, 300])
def test_a_truncated_file_is_an_error_however_it_is_cut(tmp_path: Path, name: str, cut_bytes: int) -> None:
    path = tmp_path / name
    content = FORMATS[name](cut_anywhere(lines(60, seed=3), seed=3))
    path.write_bytes(content[: -cut_bytes - (28 if name.endswith(".gz") else 0)])  # an empty block ends bgzip's files
    for unit_size_bytes in (1, 2000, WHOLE):
        with pytest.raises(SourceError, match=r"is damaged or truncated \(.+\); fetch it again$"):
            read(path, unit_size_bytes=unit_size_bytes)


@every_format
def test_a_damaged_header_is_an_error_of_reading_not_of_listing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = bytearray(FORMATS[name](cut_anywhere(lines(60, seed=4), seed=4)))
    path.write_bytes(content)
    start = pieces_of(path, unit_size_bytes=1000)[1].start
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)
    assert pieces_of(path, unit_size_bytes=1)
    with pytest.raises(SourceError, match="is damaged or truncated"):
        read(path, unit_size_bytes=1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read of disks while pieces are found."""
    sizes: list[int] = []
    pread = os.pread

    def noting(descriptor: int, count: int, offset: int) -> bytes:
        sizes.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", noting)
    return sizes


def test_a_file_of_one_frame_costs_reads_of_its_first_part_alone(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(random.Random(1).randbytes(20_000_000)))
    (piece,) = frame_ranges(stored_file(path), unit_size_bytes=EXPANSION << 16)
    assert (piece.start, piece.stop) == (0, path.stat().st_size)
    assert len(reads) < 30  # blocks of 128 KiB, up to 1 MiB
    assert sum(reads) < 100
    reads.clear()
    (piece,) = frame_ranges(stored_file(path), unit_size_bytes=WHOLE)
    assert reads == []


def test_frames_before_a_long_one_are_cut_and_it_stands_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.zst"
    short, long = lines(30, seed=1), lines(3000, seed=2)
    stored = zstd([short, short, long, short])
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 16 * len(stored[0]))
    path.write_bytes(b"".join(stored))
    pieces = pieces_of(path, unit_size_bytes=EXPANSION * len(stored[0]))
    assert [piece.start for piece in pieces] == [0, len(stored[0]), len(stored[0]) * 2]
    assert read(path, unit_size_bytes=EXPANSION * len(stored[0])) == read(path, unit_size_bytes=WHOLE)


def test_frames_of_large_pieces_are_cut_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.zst"
    stored = zstd([lines(30, seed=seed) for seed in range(4)])
    path.write_bytes(b"".join(stored))
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1)
    assert len(pieces_of(path, unit_size_bytes=EXPANSION * len(stored[0]) // 2)) == 4


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is asked of stores, in bytes."""
    sizes: list[int] = []
    readinto = storage._Remote.readinto

    def noting(file: storage._Remote, target: memoryview) -> int:
        sizes.append(len(target))
        return readinto(file, target)

    monkeypatch.setattr(storage._Remote, "readinto", noting)
    return sizes


@pytest.fixture
def put() -> Iterator[Callable[[str, bytes], str]]:
    """`put(name, content)` into a store; its URL."""
    system = fsspec.filesystem("memory")

    def store(name: str, content: bytes) -> str:
        system.pipe_file(f"/frames/{name}", content)
        return f"memory://frames/{name}"

    yield store
    system.rm("/frames", recursive=True)


def test_a_store_is_asked_for_the_table_alone(put: Callable[[str, bytes], str], requests: list[int]) -> None:
    parts = [lines(40, seed=seed) for seed in range(50)]
    url = put("table.jsonl.zst", with_table(parts))
    pieces = pieces_of(url, unit_size_bytes=EXPANSION * 3000)
    assert len(pieces) > 10
    assert len(requests) <= 4  # of which some find the end
    assert read(url, unit_size_bytes=EXPANSION * 3000) == read(url, unit_size_bytes=WHOLE)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "pzstd.jsonl.zst", "a.jsonl.gz"])
def test_without_a_table_a_file_in_a_store_is_one_piece(
    put: Callable[[str, bytes], str], requests: list[int], name: str
) -> None:
    url = put(name, FORMATS[name]([lines(40, seed=seed) for seed in range(50)]))
    assert len(pieces_of(url, unit_size_bytes=EXPANSION * 3000)) == 1
    assert len(requests) <= 2


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz"])
def test_a_store_is_not_asked_about_what_is_never_cut(
    put: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    url = put(name, bytes(9000))
    monkeypatch.setattr(frames, "open_file", lambda path, **_: pytest.fail(f"{path} was opened"))
    assert len(pieces_of(url, unit_size_bytes=1000)) == 1
