"""Files against their records: what is wrong with which file, and from which byte on."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from checkpoint import digests, file_records
from checkpoint.digests import RangeHasher, combine, digest_ranges
from checkpoint.file_records import FileRecord, file_record, find_problems, raise_unless_read


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 1,000 bytes, read 70 at a time."""
    monkeypatch.setattr(digests, "RANGE_BYTES", 1000)
    monkeypatch.setattr(file_records, "RANGE_BYTES", 1000)
    monkeypatch.setattr(digests, "_PIECE_BYTES", 70)


@pytest.fixture
def records(tmp_path: Path) -> list[FileRecord]:
    """Two files of 2,500 random bytes, an empty one, and their records."""
    generator = random.Random(0)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(generator.randbytes(2500))
    (tmp_path / "empty").touch()
    paths = (tmp_path / name for name in ("a.pt", "b.pt", "empty"))
    return [file_record(tmp_path, path, path.stat().st_size, tuple(digest_ranges(path))) for path in paths]


def problems(folder: Path, records: list[FileRecord]) -> list[str]:
    return [str(problem) for problem in find_problems(folder, records, owned=folder.glob("*.pt"))]


def test_untouched_files_have_no_problem(tmp_path: Path, records: list[FileRecord]) -> None:
    assert problems(tmp_path, records) == []


def test_digests_in_pieces_of_any_size_are_those_of_the_ranges(tmp_path: Path, records: list[FileRecord]) -> None:
    content, generator = (tmp_path / "a.pt").read_bytes(), random.Random(1)
    for _ in range(50):
        hasher, left = RangeHasher(), content
        while left:
            size = generator.randrange(1, 1700)
            hasher.update(left[:size])
            left = left[size:]
        assert hasher.size_bytes == 2500
        assert hasher.digests() == records[0].range_digests
    parts = (content[:1000], content[1000:2000], content[2000:])
    assert records[0].range_digests == tuple(xxhash.xxh3_128_hexdigest(part) for part in parts)
    assert records[0].digest == combine(records[0].range_digests)


@pytest.mark.parametrize(
    ("position", "range_told"), [(0, "0 to 999"), (1999, "1,000 to 1,999"), (2400, "2,000 to 2,499")]
)
def test_flipped_bit_is_told_with_its_file_and_range(
    tmp_path: Path, records: list[FileRecord], position: int, range_told: str
) -> None:
    content = bytearray((tmp_path / "b.pt").read_bytes())
    content[position] ^= 1
    (tmp_path / "b.pt").write_bytes(content)
    [problem] = problems(tmp_path, records)
    assert problem.startswith(f"b.pt: contents changed in bytes {range_told} (")
    assert f"wanted {records[1].range_digests[position // 1000][:12]}…)" in problem


def test_truncated_file_is_told_with_both_sizes(tmp_path: Path, records: list[FileRecord]) -> None:
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:2000])
    assert problems(tmp_path, records) == ["a.pt: 2,000 bytes, wanted 2,500"]


def test_missing_file_is_told(tmp_path: Path, records: list[FileRecord]) -> None:
    (tmp_path / "a.pt").unlink()
    assert problems(tmp_path, records) == ["a.pt: missing"]


def test_file_that_cannot_be_looked_at_is_not_a_missing_one(
    tmp_path: Path, records: list[FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def fail(path: Path, **settings: Any) -> os.stat_result:
        if path.name == "a.pt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **settings)

    monkeypatch.setattr(Path, "stat", fail)
    assert problems(tmp_path, records) == ["a.pt: cannot be read: Permission denied"]
    with pytest.raises(PermissionError):
        raise_unless_read(find_problems(tmp_path, records, owned=()))


def test_link_to_itself_is_told(tmp_path: Path, records: list[FileRecord]) -> None:
    (tmp_path / "a.pt").unlink()
    (tmp_path / "a.pt").symlink_to("a.pt")
    assert problems(tmp_path, records) == ["a.pt: cannot be read: Too many levels of symbolic links"]


def test_swapped_files_are_both_told(tmp_path: Path, records: list[FileRecord]) -> None:
    (tmp_path / "a.pt").rename(tmp_path / "c")
    (tmp_path / "b.pt").rename(tmp_path / "a.pt")
    (tmp_path / "c").rename(tmp_path / "b.pt")
    told = problems(tmp_path, records)
    assert [line.split(" (")[0] for line in told] == [
        "a.pt: contents changed in bytes 0 to 999",
        "b.pt: contents changed in bytes 0 to 999",
    ]


def test_link_out_of_the_folder_is_not_followed(
    tmp_path: Path, records: list[FileRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = (tmp_path / "a.pt").rename(tmp_path_factory.mktemp("elsewhere") / "a.pt")
    (tmp_path / "a.pt").symlink_to(moved)
    assert problems(tmp_path, records) == ["a.pt: a link that leads out of the checkpoint; do not trust it"]


def test_file_that_no_record_names_is_told(tmp_path: Path, records: list[FileRecord]) -> None:
    (tmp_path / "c.pt").touch()
    assert problems(tmp_path, records) == ["c.pt: not in the manifest; remove it"]


def test_range_that_cannot_be_read_is_told_and_the_others_are_still_checked(
    tmp_path: Path, records: list[FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    # reading the first byte of one's own memory is an input/output error, as a bad sector is
    real = digests._digest_range
    places = [(Path("/proc/self/mem"), 0), (tmp_path / "a.pt", 0)]
    failed, digest = digests.digest_ranges_of(places)
    assert isinstance(failed, OSError)
    assert digest == records[0].range_digests[0]

    def read(place: tuple[Path, int], pace: Any) -> str | OSError:
        return real((Path("/proc/self/mem"), 0) if place == (tmp_path / "a.pt", 1) else place, pace)

    monkeypatch.setattr(digests, "_digest_range", read)
    assert problems(tmp_path, records) == ["a.pt: bytes 1,000 to 1,999 cannot be read: Input/output error"]
    with pytest.raises(OSError, match="Input/output error"):
        raise_unless_read(find_problems(tmp_path, records, owned=()))
    spoilt = bytearray((tmp_path / "a.pt").read_bytes())
    spoilt[-1] ^= 1
    (tmp_path / "a.pt").write_bytes(spoilt)
    found = find_problems(tmp_path, records, owned=())
    raise_unless_read(found)
    assert "a.pt: contents changed in bytes 2,000" in str(found[0])


def test_record_whose_ranges_are_not_those_of_its_file_is_told(tmp_path: Path, records: list[FileRecord]) -> None:
    wrong = [record.model_copy(update={"range_digests": record.range_digests[:2]}) for record in records[:1]]
    assert problems(tmp_path, [*wrong, *records[1:]]) == ["a.pt: the digests of its ranges are not those of the file"]


def test_reading_is_bounded_over_all_files_and_threads(tmp_path: Path, records: list[FileRecord]) -> None:
    begin_s = time.monotonic()
    found = find_problems(tmp_path, records, owned=(), bytes_per_second=20_000)
    assert found == []
    # 5,000 bytes in pieces of 70: the last piece of each thread is not waited for
    assert 0.2 < time.monotonic() - begin_s < 2
