from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.plan import (
    MAX_UNITS,
    UNIT_SIZE_BYTES,
    Plan,
    Unit,
    changed_inputs,
    group_pieces,
    make_plan,
    plan_to_json,
    units_of,
)
from pipeline.sources.piece import Piece


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


def test_ranges_that_follow_each_other_in_a_unit_are_one(make_config: Callable[..., PipelineConfig]) -> None:
    ranges = [Piece("a", "1", start, start + 10, 30) for start in (0, 10, 20, 40)] + [Piece("b", "1", 50, 60, 30)]
    (unit,) = units_of({"corpus": ranges}, make_config())
    assert unit.pieces == (Piece("a", "1", 0, 30, 90), Piece("a", "1", 40, 50, 30), Piece("b", "1", 50, 60, 30))
    parquet = {"name": "corpus", "type": "parquet", "files": ["a"]}
    (unit,) = units_of({"corpus": ranges}, make_config(sources=[parquet]))
    assert unit.pieces == tuple(ranges)  # row groups, which name their records


def test_units_are_smaller_where_filters_look_into_texts(
    tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / "a.jsonl").open("wb") as file:
        file.truncate(64 << 20)
    assert len(make_plan(make_config()).units) == 2
    assert len(make_plan(make_config(filters=[{"type": "length"}, {"type": "c4"}])).units) == 8


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


def test_the_plan_is_stored_whole() -> None:
    pieces = (piece("a \udcff", 3), piece("ä", 4))  # a name that is not UTF-8
    plan = Plan((Unit(index=0, source="web", pieces=pieces), Unit(index=1, source="code", pieces=pieces[1:])))
    assert plan_to_json(plan) == json.dumps([asdict(unit) for unit in plan.units]).encode()


def test_changed_inputs_are_listed_a_line_a_file(
    corpus: Path, tmp_path: Path, make_config: Callable[..., PipelineConfig]
) -> None:
    config = make_config(unit_size_bytes=1000)
    stored = tmp_path / "plan.json"
    stored.write_bytes(plan_to_json(make_plan(config)))
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
