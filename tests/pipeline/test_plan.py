from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan as plan_module
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.plan import (
    MAX_UNITS,
    UNIT_SIZE_BYTES,
    Plan,
    Unit,
    changed_inputs,
    default_unit_size_bytes,
    group_pieces,
    is_stored_in,
    json_parts,
    make_plan,
    units_of,
)
from pipeline.run import run
from pipeline.sources.piece import PackedPieces, Piece


def piece(name: str, size_bytes: int) -> Piece:
    return Piece(path=name, version="1", start=0, stop=size_bytes, size_bytes=size_bytes)


def test_consecutive_pieces_fill_a_unit_and_a_larger_one_stands_alone() -> None:
    pieces = [piece(name, size) for name, size in (("a", 4), ("b", 6), ("c", 1), ("d", 30), ("e", 5))]
    groups = group_pieces(pieces, unit_size_bytes=10)
    assert [[piece.path for piece in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_large_input_is_cut_into_so_many_units_by_grouping_its_ranges(
    make_config: Callable[..., PipelineConfig],
) -> None:
    ranges = [piece(str(number), UNIT_SIZE_BYTES) for number in range(5 * MAX_UNITS // 2)]
    default = make_config()
    assert {len(unit.pieces) for unit in units_of({"corpus": ranges[:MAX_UNITS]}, default)} == {1}
    units = units_of({"corpus": ranges}, default, first_index=7)
    assert [len(unit.pieces) for unit in units[:2]] == [3, 3]
    assert [unit.index for unit in units] == list(range(7, 7 + len(units)))
    assert len(units) <= MAX_UNITS
    # what the config says is what is done
    assert len(units_of({"corpus": ranges}, make_config(unit_size_bytes=UNIT_SIZE_BYTES))) == len(ranges)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_ranges_that_follow_each_other_in_a_unit_are_one(make_config: Callable[..., PipelineConfig], kind: str) -> None:
    ranges = [Piece("a", "1", start, start + 10, 30) for start in (0, 10, 20, 40)] + [Piece("b", "1", 50, 60, 30)]
    (unit,) = units_of({"corpus": ranges}, make_config(sources=[{"name": "corpus", "type": kind, "files": ["a"]}]))
    assert unit.pieces == (Piece("a", "1", 0, 30, 90), Piece("a", "1", 40, 50, 30), Piece("b", "1", 50, 60, 30))


def test_files_of_a_stream_stay_pieces_of_their_own(make_config: Callable[..., PipelineConfig]) -> None:
    files = [Piece("web/train", "1", start, start + 1, 30) for start in range(3)]
    source = {"name": "corpus", "type": "huggingface_stream", "path": "web"}
    (unit,) = units_of({"corpus": files}, make_config(sources=[source]))
    assert unit.pieces == tuple(files)


def write_columns(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Sources of all kinds that are cut by rows, with duplicates and bad rows in many of their groups."""
    datasets = pytest.importorskip("datasets")
    content: list[bytes | None] = [text.encode() for text in texts]
    content[7], content[50], content[33], content[61] = None, b"\xff\xfe", content[2], content[3]
    table = pa.table({"text": pa.array(content, pa.binary()).view(pa.string())})
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    pq.write_table(table.slice(20), folder / "b.parquet", row_group_size=7)
    for name, new in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        with new(folder / name, table.schema) as writer:
            writer.write_table(table.slice(9), max_chunksize=4)
    datasets.Dataset.from_dict({"text": texts[30:]}).save_to_disk(str(folder / "saved"))
    return [
        *({"name": kind, "type": kind, "files": [f"{folder}/*.{kind}"]} for kind in ("parquet", "arrow")),
        {"name": "saved", "type": "huggingface", "path": f"{folder}/saved", "loader": "load_from_disk"},
    ]


def test_joined_row_groups_give_the_bytes_that_single_ones_give(
    tmp_path: Path,
    make_config: Callable[..., PipelineConfig],
    make_texts: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = write_columns(tmp_path, make_texts(80, seed=5))
    # as if the input were large: units of several of what each source is cut into
    monkeypatch.setattr(plan_module, "UNIT_SIZE_BYTES", 2000)
    monkeypatch.setattr(plan_module, "MAX_UNITS", 20)
    pieces, made = [], []
    for types in (plan_module._TYPES_OF_RANGES, ()):
        monkeypatch.setattr(plan_module, "_TYPES_OF_RANGES", types)
        config = make_config(
            sources=sources,
            output_dir=tmp_path / f"dataset-{len(types)}",
            executor="serial",
            max_bad_record_fraction=1,
            deduplication={"exact": {}},
        )
        pieces.append([(unit.source, len(unit.pieces)) for unit in make_plan(config).units])
        run(config)
        report = json.loads((config.output_dir / "report.json").read_text())
        dropped = [report["sources"][source["name"]]["dropped"] for source in sources]
        files = [*sorted(config.output_dir.rglob("*.arrow")), config.output_dir / "manifest.json"]
        made.append((dropped, {file.relative_to(config.output_dir): file.read_bytes() for file in files}))
    joined, single = pieces
    assert len(joined) == len(single) > 5
    assert all(any(of == kind and count > 1 for of, count in single) for kind in ("parquet", "arrow", "saved"))
    assert max(count for _, count in joined) <= 2  # the end of a file and the beginning of the next
    assert made[0] == made[1]


def test_a_plan_takes_no_memory_for_each_row_group(
    make_config: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_pieces(config: object, *, unit_size_bytes: int) -> Iterator[Piece]:
        for group in range(20_000):
            yield Piece(path="a.parquet", version="1", start=group, stop=group + 1, size_bytes=4_000_000 + group % 999)

    monkeypatch.setattr(plan_module, "reader_of", lambda source: SimpleNamespace(find_pieces=find_pieces))
    config = make_config(sources=[{"name": "corpus", "type": "parquet", "files": ["a"]}], unit_size_bytes=1 << 30)
    tracemalloc.start()
    try:
        plan = make_plan(config)
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(unit.pieces) for unit in plan.units] == [1] * len(plan.units)
    assert plan.units[-1].pieces[0].stop == 20_000
    assert held_bytes < 100_000
    assert peak_bytes < 20_000 * 40  # 28 in arrays that grow by an eighth; as objects 170


def test_packed_pieces_are_the_pieces() -> None:
    pieces = [
        Piece("a", "1", 0, 1, 5),
        Piece("a", "1", 1, 3, 0),
        Piece("a", "2", 0, 1, 5),
        Piece("b", "2", 0, 1 << 40, 7),
    ]
    packed = PackedPieces(iter(pieces))
    assert (list(packed), list(packed), len(packed)) == (pieces, pieces, 4)
    assert not PackedPieces([])


def test_a_compressed_file_of_frames_of_60_mb_is_cut_between_them(
    tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    """As `cat` joins files. Of raw blocks of zeros, which lie on no disk."""
    block_bytes, blocks = 131_072, 480
    header = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x38])  # a window of 128 KiB, no checksum
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / "a.jsonl.zst").open("wb") as file:
        for _ in range(4):
            file.write(header)
            for block in range(blocks):
                file.write((block_bytes << 3 | (block == blocks - 1)).to_bytes(3, "little"))
                file.seek(block_bytes - 1, 1)
                file.write(b"\0")
    source = {"name": "corpus", "type": "jsonl", "files": [str(tmp_path / "corpus" / "*")]}
    assert len(make_plan(make_config(sources=[source])).units) == 4


@pytest.mark.parametrize(
    ("input_mib", "unit_mib"),
    [(1, 8), (2048, 8), (4096, 16), (8192, 32), (32 * MAX_UNITS, 32), (32 * MAX_UNITS + 1, 64)],
)
def test_a_unit_is_a_share_of_the_input_within_limits(input_mib: int, unit_mib: int) -> None:
    assert default_unit_size_bytes(input_mib << 20, largest=UNIT_SIZE_BYTES) == unit_mib << 20


def test_units_are_smaller_where_filters_look_into_texts(
    tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / "a.jsonl").open("wb") as file:
        file.truncate(2 << 30)  # without blocks on the disk
    assert len(make_plan(make_config()).units) == 256
    assert len(make_plan(make_config(filters=[{"type": "length"}, {"type": "c4"}])).units) == 256
    with (tmp_path / "corpus" / "a.jsonl").open("wb") as file:
        file.truncate(64 << 20)
    assert len(make_plan(make_config()).units) == 8
    assert len(make_plan(make_config(filters=[{"type": "length"}, {"type": "c4"}])).units) == 32


def test_compressed_files_count_as_what_is_in_them(tmp_path: Path, make_config: Callable[..., PipelineConfig]) -> None:
    (tmp_path / "corpus").mkdir()
    for name in "abc":
        (tmp_path / "corpus" / f"{name}.txt.gz").write_bytes(bytes(1000))
    source = {"name": "corpus", "type": "text", "files": [f"{tmp_path}/corpus/*"]}
    plan = make_plan(make_config(sources=[source], unit_size_bytes=6000))
    assert [len(unit.pieces) for unit in plan.units] == [2, 1]
    assert plan.size_bytes == 9000


def test_units_are_numbered_over_all_sources(
    corpus: Path, tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    sources = [
        {"name": "one", "type": "text", "files": [f"{corpus}/0.jsonl"]},
        {"name": "two", "type": "text", "files": [f"{corpus}/*.jsonl"]},
    ]
    plan = make_plan(make_config(sources=sources, unit_size_bytes=1))
    assert [(unit.index, unit.source, Path(unit.pieces[0].path).name) for unit in plan.units] == [
        (0, "one", "0.jsonl"),
        (1, "two", "0.jsonl"),
        (2, "two", "1.jsonl"),
        (3, "two", "2.jsonl"),
    ]
    sizes = [(corpus / f"{part}.jsonl").stat().st_size for part in range(3)]
    assert plan.size_bytes_by_source == {"one": sizes[0], "two": sum(sizes)}


def test_the_plan_covers_every_byte_once(corpus: Path, make_config: Callable[..., PipelineConfig]) -> None:
    plan = make_plan(make_config(unit_size_bytes=1000))
    assert plan.size_bytes == sum(file.stat().st_size for file in corpus.iterdir())
    assert all(unit.size_bytes <= 1000 for unit in plan.units)


def test_the_plan_is_stored_whole(tmp_path: Path) -> None:
    pieces = (piece("a \udcff", 3), piece("ä", 4))  # a name that is not UTF-8
    plan = Plan((Unit(index=0, source="web", pieces=pieces), Unit(index=1, source="code", pieces=pieces[1:])))
    content = b"".join(json_parts(plan))
    assert content == json.dumps([asdict(unit) for unit in plan.units]).encode()
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    assert is_stored_in(path, plan)
    assert not is_stored_in(path, Plan(plan.units[:1]))
    for other in (content[:-1], content + b" ", content.replace(b"web", b"wob"), b""):
        path.write_bytes(other)
        assert not is_stored_in(path, plan)


def test_changed_inputs_are_listed_a_line_a_file(
    corpus: Path, tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    config = make_config(unit_size_bytes=1000)
    stored = tmp_path / "plan.json"
    stored.write_bytes(b"".join(json_parts(make_plan(config))))
    assert changed_inputs(stored, make_plan(config)) == []
    (corpus / "0.jsonl").unlink()
    with (corpus / "1.jsonl").open("a") as file:
        file.write("\n")
    (corpus / "3.jsonl").write_text('{"text": "new"}\n')
    gone, changed, new = changed_inputs(stored, make_plan(config))
    assert gone == f"{corpus}/0.jsonl is gone"
    assert changed.startswith(f"{corpus}/1.jsonl has changed (")
    assert new == f"{corpus}/3.jsonl is new"


@pytest.mark.parametrize("stored", [b"", b"\xff", b"7", b"[{}]"])
def test_a_damaged_plan_is_one_line(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(stored)
    expected = rf"^{path}, the list of the input .*, is damaged; if no input file has changed since, remove that file"
    with pytest.raises(PipelineError, match=expected):
        changed_inputs(path, Plan(()))


def test_a_source_of_empty_files_is_an_error(tmp_path: Path, make_config: Callable[..., PipelineConfig]) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").touch()
    with pytest.raises(SourceError, match="source 'corpus' is empty: none of its files holds a record"):
        make_plan(make_config())


def test_a_unit_is_called_by_its_files_and_ranges() -> None:
    few = Unit(3, "web", (Piece("a.jsonl", "1", 10, 20, 10), piece("b.jsonl", 7)))
    assert str(few) == "unit 3 of web (a.jsonl 10-20, b.jsonl 0-7)"
    many = Unit(3, "web", tuple(piece(name, 1) for name in "abcdefghijk"))
    assert str(many).endswith("g 0-1, h 0-1, and 3 more)")
