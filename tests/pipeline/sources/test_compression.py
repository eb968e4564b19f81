from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.document import SourceError
from pipeline.sources.compression import open_piece
from pipeline.sources.piece import whole_file
from pipeline.sources.storage import stored_file
from pipeline.sources.suffix import inner_suffix, is_compressed

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    # with a checksum: without one, not every damage can be seen
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
CONTENT = b"".join(b"line %d of some text\n" % number for number in range(100_000))

every_compression = pytest.mark.parametrize("suffix", COMPRESS)


def read(path: Path) -> bytes:
    with open_piece(whole_file(stored_file(path))) as file:
        return file.read()


@every_compression
def test_two_members_are_one_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](CONTENT) + COMPRESS[suffix](b"more"))
    assert read(path) == CONTENT + b"more"


@every_compression
@pytest.mark.parametrize("cut_bytes", [1, 9, 2000])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, cut_bytes: int) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](CONTENT)[:-cut_bytes])
    with pytest.raises(SourceError, match=rf"a\{suffix} is damaged or truncated \([^\n]+\); fetch it again$"):
        read(path)


@every_compression
def test_a_file_that_is_half_compressed_is_an_error_not_an_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](CONTENT) + CONTENT)
    with pytest.raises(SourceError, match=rf"a\{suffix} is damaged or truncated"):
        read(path)


@every_compression
def test_damage_in_the_middle_is_an_error_that_names_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    content = bytearray(COMPRESS[suffix](CONTENT))
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(byte ^ 0x55 for byte in content[middle : middle + 50])
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"a\{suffix} is damaged or truncated"):
        read(path)


@every_compression
def test_no_bytes_are_a_failed_download_and_compressed_nothing_is_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(SourceError, match=r"damaged or truncated \(it has no bytes\)"):
        read(path)
    path.write_bytes(COMPRESS[suffix](b""))
    assert read(path) == b""


def test_xz_may_be_padded(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(b"one") + bytes(4) + lzma.compress(b"two") + bytes(8))
    assert read(path) == b"onetwo"


def test_zstd_may_have_a_long_window(tmp_path: Path) -> None:
    # RFC 8878: magic number, no content size follows, a window of 2 ^ (10 + 21) bytes, one raw block
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3])
    (tmp_path / "a.zst").write_bytes(frame + (4 << 3 | 1).to_bytes(3, "little") + b"text")
    assert read(tmp_path / "a.zst") == b"text"


def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    piece = whole_file(stored_file(path))
    path.write_bytes(b"afterwards")
    with (
        pytest.raises(SourceError, match=r"a.txt has changed since the run listed it \(6 bytes.* → 10 bytes"),
        open_piece(piece),
    ):
        pass
    path.unlink()
    with pytest.raises(SourceError, match=r"a.txt is gone since the run listed it"), open_piece(piece):
        pass


def test_what_is_inside_is_told_by_the_suffix_before() -> None:
    assert [inner_suffix(path) for path in ("a.tsv", "s3://b/a.tsv.xz", "a.b/c.gz")] == [".tsv", ".tsv", ""]
    assert [is_compressed(path) for path in ("a.bz2", "a.gz.txt", "memory://a.zst")] == [True, False, True]


def test_a_query_of_a_url_is_no_part_of_the_name_and_a_file_may_hold_its_characters() -> None:
    urls = ("https://host/a.tsv.gz?token=b.c", "http://host/a.tsv.gz#d.e", "https://host/a.tsv?of=b.gz")
    assert [is_compressed(url) for url in urls] == [True, True, False]
    assert [inner_suffix(url) for url in urls] == [".tsv", ".tsv", ".tsv"]
    assert all(is_compressed(path) for path in ("what?.gz", "a#1.gz", "s3://bucket/C#/a.gz"))
